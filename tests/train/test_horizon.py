"""A run has exactly as many steps as were asked for, or as fit into its time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtrain.profile.schema import TrainSection
from llmtrain.train.horizon import Horizon, horizon_of
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
    known: int | None = None,
) -> Walk:
    """Steps as the training session takes them; the last time in the list goes on for ever."""
    done = Walk()
    known = horizon.steps if horizon.time_s is None else known
    while True:
        done.factors.append(schedule.factor(done.steps, known))
        took_s = times_s[min(done.steps, len(times_s) - 1)]
        done.steps += 1
        done.elapsed_s += took_s
        known = horizon.estimate(
            schedule,
            step=done.steps,
            known=known,
            elapsed_s=done.elapsed_s,
            step_s=took_s,
            reserve_s=reserve_s,
        )
        done.estimates.append(known)
        if horizon.is_over(
            step=done.steps,
            known=known,
            elapsed_s=done.elapsed_s,
            step_s=took_s,
            reserve_s=reserve_s,
        ):
            return done


@given(st.integers(1, 300), st.floats(0, 1e9))
def test_so_many_steps_are_so_many_steps(steps: int, step_s: float) -> None:
    done = walk(Horizon(steps=steps), WSD, [step_s])
    assert done.steps == steps
    assert set(done.estimates) == {steps}


def test_no_estimate_before_the_pace_is_known() -> None:
    done = walk(Horizon(time_s=100), WSD, [10, 5, 1])
    assert done.estimates[:3] == [None, None, 3 + 84]
    assert done.steps == 3 + 84


def test_an_even_pace_uses_the_time_and_ends_with_the_decay() -> None:
    done = walk(Horizon(time_s=100), WSD, [1.0], reserve_s=10)
    assert done.steps == 90
    assert done.elapsed_s == 90
    assert done.factors[-1] == pytest.approx(1 / 45)


def test_the_estimate_follows_the_pace_until_decay_begins_and_then_stays() -> None:
    faster = [2.0] * 10 + [1.0] * 200
    done = walk(Horizon(time_s=100), WSD, faster)
    assert done.estimates[8] == 50
    assert done.estimates[10] == 11 + 79
    fixed_at = next(i + 1 for i, known in enumerate(done.estimates) if known == 90 and i >= 44)
    assert fixed_at <= 46
    assert len(set(done.estimates[fixed_at:])) == 1
    assert done.steps == done.estimates[-1]


@pytest.mark.parametrize("shape", ["wsd", "linear", "cosine"])
def test_once_decay_began_the_horizon_is_fixed(shape: Literal["wsd", "linear", "cosine"]) -> None:
    schedule = Schedule(shape, 5, 0.5, 0.0)
    start = schedule.decay_start(100)
    at = {"known": 100, "elapsed_s": 60.0, "step_s": 0.001, "reserve_s": 0.0}
    assert Horizon(time_s=1e4).estimate(schedule, step=start - 1, **at) != 100  # type: ignore[arg-type]
    for step in (start, start + 1, 99, 100):
        assert Horizon(time_s=1e4).estimate(schedule, step=step, **at) == 100  # type: ignore[arg-type]


def test_a_slow_end_is_cut_off_by_the_clock() -> None:
    done = walk(Horizon(time_s=100), WSD, [1.0] * 60 + [5.0] * 100, reserve_s=3)
    assert done.elapsed_s <= 97
    assert done.elapsed_s + 5 + 3 > 100
    assert done.steps < (done.estimates[-1] or 0)


def test_no_time_at_all_is_one_step() -> None:
    assert walk(Horizon(time_s=1), WSD, [50.0]).steps == 1
    assert walk(Horizon(time_s=1), WSD, [0.1], reserve_s=1000).steps == 1


def test_a_clock_too_coarse_for_the_step_still_estimates() -> None:
    known = Horizon(time_s=10).estimate(
        WSD, step=3, known=None, elapsed_s=1, step_s=0.0, reserve_s=0
    )
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
        assert known is None or known > step or step == done.steps


def test_what_a_profile_asks_for() -> None:
    assert horizon_of(TrainSection()) is None
    assert horizon_of(TrainSection(steps=7)) == Horizon(steps=7)
    timed = TrainSection.model_validate({"time": "30m"})
    assert horizon_of(timed) == Horizon(time_s=1800)
    assert horizon_of(TrainSection(tokens=100, tokens_per_step=1000)) == Horizon(steps=1)
    assert horizon_of(TrainSection(tokens=2600, tokens_per_step=1000)) == Horizon(steps=3)
