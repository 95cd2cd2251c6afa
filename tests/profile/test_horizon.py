"""A run has exactly as many steps as were asked for, or as fit into its time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtrain.profile.horizon import Horizon, horizon_of
from llmtrain.profile.schema import TrainSection
from llmtrain.train.schedule import Schedule

WSD = Schedule("wsd", 2, 0.5, 0.0)


@dataclass
class Walk:
    """What a run with invented step times did."""

    steps: int = 0
    elapsed_s: float = 0.0
    estimates: list[int | None] = field(default_factory=list)
    factors: list[float] = field(default_factory=list)


def walk(
    horizon: Horizon,
    schedule: Schedule,
    times_s: list[float],
    reserve_s: float = 0.0,
    begun_s: float = 0.0,
) -> Walk:
    """Steps as the training session takes them; the last time in the list goes on for ever."""
    done = Walk(elapsed_s=begun_s)
    progress: float | None = 0.0
    while True:
        if horizon.steps is not None:
            progress = done.steps / horizon.steps
        done.factors.append(schedule.factor(done.steps, progress))
        took_s = times_s[min(done.steps, len(times_s) - 1)]
        done.steps += 1
        done.elapsed_s += took_s
        pace = {"elapsed_s": done.elapsed_s, "reserve_s": reserve_s}
        done.estimates.append(horizon.estimate(step=done.steps, step_s=took_s, **pace))
        progress = horizon.progress(begun_s=begun_s, **pace)
        if horizon.is_over(step=done.steps, step_s=took_s, **pace):
            return done


@given(st.integers(1, 300), st.floats(0, 1e9))
def test_so_many_steps_are_so_many_steps(steps: int, step_s: float) -> None:
    done = walk(Horizon(steps=steps), WSD, [step_s])
    assert done.steps == steps
    assert set(done.estimates) == {steps}


def test_steps_that_are_counted_have_no_progress_in_time() -> None:
    assert Horizon(steps=5).progress(elapsed_s=1, begun_s=0, reserve_s=0) is None


def test_an_even_pace_uses_the_time_and_ends_with_the_decay() -> None:
    done = walk(Horizon(time_s=100), WSD, [1.0], reserve_s=10)
    assert done.steps == 90
    assert done.elapsed_s == 90
    assert set(done.estimates) == {90}
    steps = walk(Horizon(steps=90), WSD, [1.0])
    assert done.factors == pytest.approx(steps.factors)


def test_what_comes_before_the_first_step_does_not_use_up_the_schedule() -> None:
    done = walk(Horizon(time_s=150), WSD, [1.0], reserve_s=10, begun_s=50)
    assert done.factors == pytest.approx(walk(Horizon(steps=90), WSD, [1.0]).factors)


@pytest.mark.parametrize("turn", [20, 60, 85])
@pytest.mark.parametrize("later_s", [0.5, 2.0])
def test_a_change_of_pace_changes_the_steps_and_not_the_end(turn: int, later_s: float) -> None:
    done = walk(Horizon(time_s=100), WSD, [1.0] * turn + [later_s] * 200)
    assert done.steps == turn + int((100 - turn) / later_s)
    assert done.elapsed_s > 100 - later_s
    assert done.factors[-1] <= 2 * later_s / 50  # the step after it would have ended too late
    falls = done.factors[2:]
    assert falls == sorted(falls, reverse=True)


def test_no_time_at_all_is_one_step() -> None:
    assert walk(Horizon(time_s=1), WSD, [50.0]).steps == 1
    assert walk(Horizon(time_s=1), WSD, [0.1], reserve_s=1000).steps == 1
    assert Horizon(time_s=1).progress(elapsed_s=0.5, begun_s=0, reserve_s=1000) == 1.0


def test_a_clock_too_coarse_for_the_step_still_estimates() -> None:
    known = Horizon(time_s=10).estimate(step=3, elapsed_s=1, step_s=0.0, reserve_s=0)
    assert known is not None
    assert known > 3


@given(
    time_s=st.floats(1, 1000),
    times_s=st.lists(st.floats(0.5, 20), min_size=1, max_size=50),
    reserve_s=st.floats(0, 50),
    shape=st.sampled_from(["wsd", "linear", "cosine"]),
)
def test_the_time_is_kept_where_steps_do_not_slow_down(
    time_s: float,
    times_s: list[float],
    reserve_s: float,
    shape: Literal["wsd", "linear", "cosine"],
) -> None:
    times_s = sorted(times_s, reverse=True)
    done = walk(Horizon(time_s=time_s), Schedule(shape, 3, 0.5, 0.0), times_s, reserve_s)
    assert done.steps == 1 or done.elapsed_s + reserve_s <= time_s * (1 + 1e-9)
    for step, known in enumerate(done.estimates, start=1):
        assert known is not None
        assert known >= step
    assert done.factors[3:] == sorted(done.factors[3:], reverse=True)


def test_what_a_profile_asks_for() -> None:
    assert horizon_of(TrainSection()) is None
    assert horizon_of(TrainSection(steps=7)) == Horizon(steps=7)
    timed = TrainSection.model_validate({"time": "30m"})
    assert horizon_of(timed) == Horizon(time_s=1800)
    assert horizon_of(TrainSection(tokens=100, tokens_per_step=1000)) == Horizon(steps=1)
    assert horizon_of(TrainSection(tokens=2600, tokens_per_step=1000)) == Horizon(steps=3)
