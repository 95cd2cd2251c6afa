"""Machines of CPUs like this one: what is timed here, and a network that is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmtrain.engine.cluster import cpu_machines
from llmtrain.engine.cluster.paper import plan_cluster
from llmtrain.engine.cluster.prediction import ClusterPlan, parse_round_trip_s
from llmtrain.engine.request import TrainRequest
from llmtrain.errors import UsageError
from llmtrain.machine.assume import assume_machine
from llmtrain.machine.facts import CpuTimes, ExchangeTimes, MatmulTimes, PartTime, ProcessTimes
from llmtrain.model.step_timing import Way
from llmtrain.plan import exchange_benchmarks, process_benchmarks
from tests.machines import CPU, step_times

TIMES = CpuTimes(
    MatmulTimes(fp32_s=1.0, medium_s=0.9, bf16_s=0.8, flops=1e11),
    eager=step_times(0.1, 0.3, 0.1, micro_batch=4),
)
SMALL = ("train.tokens_per_step=4096", "device.precision=fp32", "device.compile=false")
Predict = Callable[..., ClusterPlan]


@pytest.fixture
def told() -> list[str]:
    """What is announced."""
    return []


@pytest.fixture
def predict(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, told: list[str]) -> Predict:
    """Predict on a machine whose times are given."""
    monkeypatch.setenv("LLMTRAIN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(TrainRequest, "read_facts", lambda *_, **__: CPU)
    monkeypatch.setattr(cpu_machines, "measured_cpu", lambda *_: TIMES)
    monkeypatch.setattr(
        exchange_benchmarks, "time_exchange", lambda _: ExchangeTimes(2e-4, 1e-9, 1e-9)
    )

    def time_processes(processes: int, _shape: object, way: Way, *_: Any, **__: Any) -> Any:
        share = way.micro_batch / 4
        return ProcessTimes(1.2 * share, 1.2 * share + 0.1 * processes, 0.15, 0.0)

    monkeypatch.setattr(process_benchmarks, "time_processes", time_processes)

    def plan(*assignments: str, nodes: int = 1, **options: Any) -> ClusterPlan:
        request = TrainRequest("cpu-tiny", (*SMALL, "train.micro_batch=4", *assignments))
        return plan_cluster(request, nodes=nodes, announce=told.append, **options)

    return plan


def test_one_rank_takes_what_its_parts_take(predict: Predict) -> None:
    found = predict()
    layers, accumulation = 6, 4096 // (4 * 256)
    assert found.step.compute_s == pytest.approx(accumulation * (layers * 0.1 + 0.3))
    assert found.step.update_s == pytest.approx(0.1)
    assert found.step.exposed_s == 0
    assert found.ranks == 1
    assert found.gpu_hours is None
    assert found.hours is not None


def test_a_rank_on_each_machine_computes_its_share_and_sends(predict: Predict) -> None:
    alone, two = predict(), predict(nodes=2, network="100Mb")
    assert two.step.compute_s == pytest.approx(alone.step.compute_s / 2)
    assert two.step.update_s == alone.step.update_s
    wire_s = 4 * two.planned.workload.shape.parameters / (12.5e6 * 1448 / 1538)
    assert two.step.communication_s == pytest.approx(wire_s, rel=0.01)
    assert two.step.exposed_s > 0.9 * (two.step.communication_s - wire_s / 10)
    assert predict(nodes=2, network="1Gb").step.exposed_s < 0.2 * two.step.exposed_s


def test_ranks_of_one_machine_are_timed_at_once_and_once(predict: Predict, told: list[str]) -> None:
    found = predict("device.processes=2")
    assert found.ranks == 2
    assert found.step.compute_s == pytest.approx(2 * 1.2)
    assert found.step.exposed_s == pytest.approx(0.2 + 2 * 2e-4, rel=1e-3)
    assert found.step.update_s == pytest.approx(0.15)
    assert any("timing a step by 2 processes" in text for text in told)
    told.clear()
    assert predict("device.processes=2").step == found.step
    assert told == []


def test_ranks_of_several_machines_compute_as_those_of_one(predict: Predict) -> None:
    found = predict("device.processes=2", nodes=2)
    assert found.ranks == 4
    assert found.step.compute_s == pytest.approx(1.2)
    assert found.planned.plan.threads.value == 4, "half of its eight cores"
    assert found.step.communication_s > predict("device.processes=2").step.communication_s


def test_rounds_are_chosen_by_the_given_network(predict: Predict) -> None:
    slow = predict("train.sync_every=auto", nodes=2, network="10Mb")
    fast = predict("train.sync_every=auto", nodes=2, network="10Gb")
    assert fast.planned.plan.sync_every.value == 1
    assert slow.planned.plan.sync_every.value == slow.planned.workload.sync_every > 1
    assert slow.step.exposed_s < slow.step.compute_s


def test_every_assumption_has_its_source(predict: Predict) -> None:
    found = {each.name: each for each in predict(nodes=2, network="2.5Gb").assumed}
    assert found["network"].source == "--network 2.5Gb"
    assert "assumed" in found["round trip"].source
    assert "timed here" in found["computation"].source
    assert "timed here" in found["exchange in a machine"].source
    assert all(each.value and each.source for each in found.values())


def test_times_of_a_busy_machine_are_said_to_be(
    predict: Predict, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert TIMES.eager is not None
    busy = replace(TIMES.eager, head=PartTime(0.3, 0.5))
    monkeypatch.setattr(cpu_machines, "measured_cpu", lambda *_: replace(TIMES, eager=busy))
    found = {each.name: each for each in predict().assumed}
    assert "llmtrain device bench --profile cpu-tiny" in found["computation"].source


def test_what_cannot_be_predicted_is_refused(predict: Predict) -> None:
    with pytest.raises(UsageError, match="describe GPUs"):
        predict(gpu="H100")
    with pytest.raises(UsageError, match="describe GPUs"):
        predict(utilisation=0.4)
    with pytest.raises(UsageError, match="is no rate"):
        predict(nodes=2, network="fast")
    with pytest.raises(UsageError, match="--round-trip soon"):
        predict(nodes=2, round_trip="soon")
    with pytest.raises(UsageError, match="sharded over CPUs"):
        predict("device.sharding=shard", nodes=2)
    with pytest.raises(UsageError, match="is not a multiple"):
        predict(nodes=3)


def test_an_assumed_cpu_is_not_timed() -> None:
    assumed = assume_machine("cpu:8c:32GiB", python_version="3.12.0", torch_version="2.13.0")
    with pytest.raises(UsageError, match="assumed machine are not here"):
        plan_cluster(TrainRequest("cpu-tiny", assumed=assumed), nodes=2)


@pytest.mark.parametrize(("text", "seconds"), [("0.2ms", 2e-4), ("150us", 1.5e-4), ("0s", 0)])
def test_round_trips_are_times(text: str, seconds: float) -> None:
    assert parse_round_trip_s(text) == pytest.approx(seconds)
