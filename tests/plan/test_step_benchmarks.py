"""What a busy machine was measured at never becomes the truth; what was disputed is forgotten."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llmtrain.choice import Choice
from llmtrain.machine.facts import PartTime
from llmtrain.plan import step_benchmarks
from llmtrain.plan.planner import Plan, make_plan
from llmtrain.plan.step_benchmarks import StepProbes, step_probes
from tests.machines import CPU, WORKLOAD, wish

PLAN = make_plan(CPU, wish(compile=False), WORKLOAD)
COMPILED = replace(PLAN, compile=Choice(True, ""))
BLOCK = PartTime(0.25)


class Clock:
    """What is measured next, and what was measured."""

    def __init__(self) -> None:
        self.next = PartTime(1.0)
        self.asked: list[str] = []

    def block(self, *_: object) -> PartTime:
        return self._measured("block")

    def head(self, *_: object, compiled: bool) -> PartTime:
        return self._measured("compiled head" if compiled else "head")

    def update(self, *_: object) -> PartTime:
        return self._measured("update")

    def _measured(self, part: str) -> PartTime:
        self.asked.append(part)
        return self.next


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Clock:
    clock = Clock()
    monkeypatch.setenv("LLMTRAIN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(step_benchmarks, "time_chained_block", clock.block)
    monkeypatch.setattr(step_benchmarks, "time_head", clock.head)
    monkeypatch.setattr(step_benchmarks, "time_update", clock.update)
    return clock


def probes(plan: Plan = PLAN) -> StepProbes:
    return step_probes(CPU, WORKLOAD, plan)


def test_each_part_is_measured_once(clock: Clock) -> None:
    assert not probes().have("contended")
    first = probes().times("contended")
    clock.next = PartTime(2.0)
    assert probes().have("contended")
    assert probes().times("contended") == first
    assert sorted(clock.asked) == ["block", "head", "update"]


def test_a_compiled_step_has_its_block_from_the_comparison(clock: Clock) -> None:
    probes().times("contended")
    assert probes(COMPILED).saved_times(BLOCK) is None
    found = probes(COMPILED).times("missing", BLOCK)
    assert (found.block.seconds, found.head.seconds) == (0.25, 1.0)
    assert clock.asked.count("update") == 1  # the optimizer computes alike
    assert probes(COMPILED).saved_times(BLOCK) == found


def test_a_contended_measurement_is_made_again(clock: Clock) -> None:
    clock.next = PartTime(5.0, ran_share=0.5)
    busy = probes().times("contended")
    assert busy.is_contended
    assert not probes().have("contended")
    clock.next = PartTime(9.0)
    assert probes().times("missing") == busy  # for who only looks, each time alike

    clock.next = PartTime(9.0, ran_share=0.3)
    assert probes().times("contended") == busy  # it had more of the cores

    clock.next = PartTime(1.0)
    alone = probes().times("contended")
    assert alone.block == PartTime(1.0)
    clock.next = PartTime(9.0, ran_share=0.3)
    assert probes().times("contended") == alone


def test_another_measurement_is_asked_for_by_who_benches(clock: Clock) -> None:
    probes().times("contended")
    clock.next = PartTime(2.0)
    assert probes().times("all").update == PartTime(2.0)
    assert probes().times("contended").update == PartTime(2.0)


def test_what_is_disputed_is_measured_again(clock: Clock) -> None:
    probes().times("contended")
    probes().forget()
    assert not probes().have("contended")
    probes().times("contended")
    assert len(clock.asked) == 6


@pytest.mark.parametrize(
    ("change", "measured"),
    [
        ({"micro_batch": 2}, {"block", "head"}),
        ({"attention": "blocks"}, {"block"}),
        ({"precision": "bf16"}, {"block", "head", "update"}),
        ({"keep_weight_casts": True}, {"block", "head", "update"}),
        ({"activation_checkpointing": "full"}, {"block"}),
        ({"threads": 3}, {"block", "head", "update"}),
        ({"matmul_precision": "medium"}, {"block", "head", "update"}),
        ({"workers": 3}, set()),
    ],
)
def test_a_part_is_measured_for_the_decisions_that_it_depends_on(
    clock: Clock, change: dict[str, object], measured: set[str]
) -> None:
    probes().times("contended")
    clock.asked.clear()
    changes = {name: Choice(value, "") for name, value in change.items()}
    probes(replace(PLAN, **changes)).times("missing")  # type: ignore[arg-type]
    assert set(clock.asked) == measured


def test_another_shape_measures_the_parts_that_have_it(clock: Clock) -> None:
    probes().times("contended")
    for changes, measured in (
        ({"vocab_size": 999}, {"head", "update"}),
        ({"num_layers": 7}, {"update"}),
        ({"intermediate_size": 99}, {"block", "update"}),
    ):
        clock.asked.clear()
        other = replace(WORKLOAD, shape=replace(WORKLOAD.shape, **changes))
        step_probes(CPU, other, PLAN).times("missing")
        assert set(clock.asked) == measured
