from __future__ import annotations

import random
from dataclasses import replace

import pytest

from llmtrain.plan.planner import make_plan
from llmtrain.plan.rounds import (
    LONGEST_ROUND,
    SHORTEST_ROUND,
    Exchange,
    choose_sync_every,
    planned_sync_every,
    round_steps,
)
from tests.machines import CPU, CUDA, WORKLOAD, wish

OPEN = replace(WORKLOAD, sync_is_open=True, optimizer="muon")
MIB = 2**20


def exchange(seconds: float, size_bytes: int = 4 * WORKLOAD.trained_parameters) -> Exchange:
    """A network over which so many bytes take so long."""
    return Exchange(0.0, size_bytes / seconds)


def test_an_exchange_that_takes_long_makes_the_longest_rounds_and_says_what_they_leave() -> None:
    choice = choose_sync_every(OPEN, 1.1, exchange(8.4))
    assert choice.value == 30
    assert "takes 8.4s between these ranks, a step 1.1s: every 30 steps it is 20%" in choice.reason
    assert "averaging in every step 88%" in choice.reason
    assert choice.reason.endswith("longer rounds than 30 are not measured")


def test_what_rounds_cost_with_adamw_inside_is_said() -> None:
    choice = choose_sync_every(replace(OPEN, optimizer="adamw"), 1.1, exchange(8.4))
    assert choice.reason.endswith("rounds cost small models 3% of the loss, with Muon none")
    often = choose_sync_every(replace(OPEN, optimizer="adamw"), 1.0, exchange(0.1))
    assert "AdamW" not in often.reason


def test_an_exchange_that_takes_little_is_taken_in_every_step() -> None:
    choice = choose_sync_every(OPEN, 1.0, exchange(0.3))
    assert choice.value == 1
    assert "takes 300.0 ms between these ranks, a step 1s: 23% of the time" in choice.reason
    assert "rounds are for more than 25%" in choice.reason


def test_rounds_are_the_shortest_that_leave_an_exchange_a_twentieth_of_the_time() -> None:
    draw = random.Random(0)
    for _ in range(200):
        sync_s, step_s = draw.uniform(0.01, 30.0), draw.uniform(0.01, 30.0)
        every = round_steps(sync_s, step_s)
        share, shorter = (sync_s / (sync_s + n * step_s) for n in (every, every - 1))
        assert SHORTEST_ROUND <= every <= LONGEST_ROUND
        assert share <= 0.05 + 1e-9 or every == LONGEST_ROUND
        assert shorter > 0.05 or every == SHORTEST_ROUND


def test_bf16_sends_half_in_rounds_and_gradients_are_fp32() -> None:
    slow = exchange(1.0)
    fp32, bf16 = (
        choose_sync_every(replace(OPEN, sync_precision=precision), 1.0, slow)
        for precision in ("fp32", "bf16")
    )
    assert (fp32.value, bf16.value) == (19, 10)
    assert "averaging in every step 50%" in bf16.reason


def test_without_the_time_of_a_step_gradients_are_averaged() -> None:
    assert choose_sync_every(OPEN, None, exchange(60.0)).value == 1


@pytest.mark.parametrize(
    ("processes", "sharding", "precision", "why"),
    [
        (1, "replicate", "fp32", "one process trains alone"),
        (2, "shard", "bf16", "a sharded model's processes"),
        (4, "hybrid", "bf16", "a sharded model's processes"),
        (2, "replicate", "fp16", "fp16 needs a loss scale"),
        (2, "replicate", "fp32", "decided when the ranks meet"),
    ],
)
def test_before_the_ranks_meet_it_is_one_step(
    processes: int, sharding: str, precision: str, why: str
) -> None:
    choice = planned_sync_every(OPEN, processes, sharding, precision)  # type: ignore[arg-type]
    assert choice.value == 1
    assert why in choice.reason


def test_a_plan_says_what_is_asked_for_and_whether_rounds_are_possible() -> None:
    asked = make_plan(CPU, wish(processes=2), replace(WORKLOAD, sync_every=7))
    assert (asked.sync_every.value, asked.sync_every.reason) == (7, "asked for")
    assert asked.may_take_rounds
    assert not make_plan(CPU, wish(), OPEN).may_take_rounds
    assert not make_plan(CUDA, wish(precision="fp16"), OPEN).may_take_rounds
