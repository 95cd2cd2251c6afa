"""Smaller plans read the same windows in a step, and end."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llmtrain.choice import Choice
from llmtrain.plan.planner import Plan, make_plan, predict
from llmtrain.plan.smaller import smaller_plan, smaller_plans
from llmtrain.plan.workload import Workload
from tests.machines import CPU, CUDA, WORKLOAD, wish


def planned(micro_batch: int, accumulation: int, **changes: object) -> Plan:
    plan = make_plan(CPU, wish(), WORKLOAD)
    sizes = {"micro_batch": micro_batch, "accumulation": accumulation}
    values: dict[str, Any] = {name: Choice(v, "") for name, v in (sizes | changes).items()}
    return replace(plan, **values)


@pytest.mark.parametrize(
    ("micro_batch", "accumulation", "expected"),
    [(16, 1, (8, 2)), (16, 3, (8, 6)), (6, 1, (3, 2)), (3, 4, (1, 12)), (5, 1, (1, 5))],
)
def test_half_at_once_and_as_many_in_a_step(
    micro_batch: int, accumulation: int, expected: tuple[int, int]
) -> None:
    less = smaller_plan(planned(micro_batch, accumulation), "too little memory")
    assert less is not None
    assert (less.micro_batch.value, less.accumulation.value) == expected
    assert less.micro_batch.reason == f"too little memory; it was {micro_batch}"


@pytest.mark.parametrize("checkpointing", ["off", "selective"])
def test_one_sequence_is_then_computed_again(checkpointing: str) -> None:
    less = smaller_plan(planned(1, 8, activation_checkpointing=checkpointing), "why")
    assert less is not None
    assert (less.micro_batch.value, less.accumulation.value) == (1, 8)
    assert less.activation_checkpointing.value == "full"
    assert "why" in less.activation_checkpointing.reason
    assert checkpointing in less.activation_checkpointing.reason


def test_the_smallest_plan_has_none_below() -> None:
    assert smaller_plan(planned(1, 8, activation_checkpointing="full"), "") is None


@pytest.mark.parametrize("windows", [1, 7, 24, 64])
def test_they_end_and_each_needs_less(windows: int) -> None:
    plan = planned(windows, 1)
    workload = Workload(WORKLOAD.shape, WORKLOAD.shape.context * windows)
    plans = [plan, *smaller_plans(plan)]
    totals = [predict(workload, p).total_bytes for p in plans]
    assert len(plans) <= 8
    assert plans[-1].activation_checkpointing.value == "full"
    assert all(p.micro_batch.value * p.accumulation.value == windows for p in plans)
    assert totals == sorted(totals, reverse=True)
    assert len(set(totals)) == len(totals)


def test_a_cpu_does_not_compile_anew_where_memory_is_short() -> None:
    less = smaller_plan(planned(4, 1, compile=True), "why")
    assert less is not None
    assert less.compile.value is False
    assert "memory" in less.compile.reason


def test_a_gpu_does() -> None:
    plan = replace(make_plan(CUDA, wish(), WORKLOAD), compile=Choice(True, ""))
    less = smaller_plan(plan, "why")
    assert less is not None
    assert less.compile.value is True
