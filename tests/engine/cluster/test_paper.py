from __future__ import annotations

import pytest

from llmtrain.engine.cluster.paper import plan_cluster
from llmtrain.engine.cluster.prediction import ClusterPlan, parse_rate
from llmtrain.engine.request import TrainRequest
from llmtrain.errors import UsageError
from llmtrain.machine.assume import assume_machine
from llmtrain.plan.gpu_speeds import speed_of


def paper(
    spec: str = "cuda:8x80GiB",
    *,
    nodes: int = 4,
    network: str = "400Gb",
    gpu: str | None = "H100",
    utilisation: float = 0.4,
    assignments: tuple[str, ...] = (),
) -> ClusterPlan:
    assumed = assume_machine(spec, python_version="3.12.0", torch_version="2.13.0")
    return plan_cluster(
        TrainRequest("gpu-large", assignments, assumed=assumed),
        nodes=nodes,
        network=network,
        gpu=gpu,
        utilisation=utilisation,
    )


def test_tokens_hours_and_utilisation_follow_from_the_step() -> None:
    found = paper()
    workload = found.planned.workload
    assert found.ranks == 32
    assert found.tokens_per_s == pytest.approx(workload.tokens_per_step / found.step.step_s)
    assert workload.tokens is not None
    assert found.hours == pytest.approx(workload.tokens / found.tokens_per_s / 3600)
    assert found.gpu_hours == pytest.approx(32 * (found.hours or 0))
    assert 0.2 < found.utilisation <= 0.4, "one GPU's, less what communication costs"


def test_a_slow_network_costs_time() -> None:
    assert paper(network="1Gb").step.step_s > 2 * paper().step.step_s


@pytest.mark.parametrize(("network", "every"), [("400Gb", range(1, 2)), ("1Gb", range(30, 31))])
def test_rounds_follow_the_assumed_network(network: str, every: range) -> None:
    found = paper(network=network, assignments=("train.sync_every=auto",))
    chosen = found.planned.plan.sync_every
    assert chosen.value == found.planned.workload.sync_every
    assert chosen.value in every
    assert "takes" in chosen.reason
    told = paper(network=network, assignments=(f"train.sync_every={chosen.value}",))
    assert found.step == told.step


def test_the_largest_model_fits_and_is_sharded_over_more_machines() -> None:
    few, many = paper(nodes=1).largest, paper(nodes=16).largest
    assert few is not None
    assert many is not None
    assert 10e9 < few.parameters < many.parameters


@pytest.mark.parametrize(
    ("text", "bytes_per_s"),
    [("400Gb", 50e9), ("50GB", 50e9), ("1.5 Gbit/s", 187.5e6), ("100Mbps", 12.5e6)],
)
def test_rates_are_in_bits_or_bytes(text: str, bytes_per_s: float) -> None:
    assert parse_rate(text) == bytes_per_s


@pytest.mark.parametrize("text", ["", "fast", "400", "-1Gb", "0Gb", "4Gx"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no rate"):
        parse_rate(text)


def test_gpus_are_known_by_their_models() -> None:
    ada, hopper = speed_of("NVIDIA L40S"), speed_of("NVIDIA H200")
    assert ada is not None
    assert hopper is not None
    assert ada.flops < hopper.flops
    assert speed_of("a100") == speed_of("NVIDIA A100-SXM4-80GB")
    for unknown in ("assumed GPU", "NVIDIA RTX A1000", "NVIDIA T400", "NVIDIA L40"):
        assert speed_of(unknown) is None


def test_what_cannot_be_predicted_is_refused() -> None:
    with pytest.raises(UsageError, match="is not known"):
        paper(gpu=None)
    with pytest.raises(UsageError, match="describe GPUs"):
        paper("cpu:8c:32GiB")
    with pytest.raises(UsageError, match="--utilisation 2"):
        paper(utilisation=2.0)
    with pytest.raises(UsageError, match="--nodes 0"):
        paper(nodes=0)
