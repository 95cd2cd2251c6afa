"""Learning-rate factors against exact numbers, and their bounds for every step of every run."""

from __future__ import annotations

import math
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtrain.train.schedule import Schedule

Shape = Literal["wsd", "cosine", "linear"]
SHAPES = st.sampled_from(["wsd", "cosine", "linear"])
FRACTIONS = st.floats(0, 1)


def factors(schedule: Schedule, horizon_steps: int, steps: int) -> list[float]:
    return [schedule.factor(step, step / horizon_steps) for step in range(steps)]


def test_wsd_warms_up_stays_and_falls_in_a_line() -> None:
    schedule = Schedule("wsd", 4, 0.5, 0.0)
    stays = [0.25, 0.5, 0.75] + [1.0] * 18
    falls = [1 - i / 20 for i in range(1, 21)]
    assert factors(schedule, 40, 41) == pytest.approx(stays + falls)


def test_linear_falls_all_the_way_under_warm_up() -> None:
    schedule = Schedule("linear", 2, 0.5, 0.1)
    assert factors(schedule, 20, 20)[:3] == pytest.approx([0.5, 0.955, 0.91])
    assert factors(schedule, 20, 20)[-1] == pytest.approx(0.145)


def test_cosine_falls_all_the_way_under_warm_up() -> None:
    found = factors(Schedule("cosine", 2, 0.5, 0.2), 20, 20)
    half = math.sqrt(0.5) / 2
    assert found[0] == 0.5
    assert [found[5], found[10], found[15]] == pytest.approx(
        [0.2 + 0.8 * (0.5 + half), 0.6, 0.2 + 0.8 * (0.5 - half)]
    )


def test_warm_up_takes_a_tenth_of_a_run_at_most() -> None:
    for steps in (20, 100):
        found = factors(Schedule("wsd", 50, 0.5, 0.0), steps, steps)
        assert found.index(1.0) == steps // 10
        assert found[0] == 1 / 50


def test_without_warm_up_the_first_factor_is_the_peak() -> None:
    for shape in ("wsd", "cosine", "linear"):
        assert Schedule(shape, 0, 0.5, 0.0).factor(0, 0.0) == 1.0


def test_with_no_horizon_nothing_falls() -> None:
    for shape in ("wsd", "cosine", "linear"):
        schedule = Schedule(shape, 2, 1.0, 0.0)
        assert [schedule.factor(step, None) for step in (0, 1, 2, 10**9)] == [0.5, 1, 1, 1]


def test_no_decay_where_none_is_asked_for() -> None:
    assert factors(Schedule("wsd", 0, 0.0, 0.0), 5, 5) == [1.0] * 5
    assert factors(Schedule("linear", 0, 0.5, 1.0), 5, 5) == [1.0] * 5


@given(SHAPES, st.integers(0, 2000), FRACTIONS, FRACTIONS, st.integers(1, 10**6), st.data())
def test_a_factor_is_between_nothing_and_the_peak(
    shape: Shape, warmup: int, decay: float, final: float, horizon: int, data: st.DataObject
) -> None:
    schedule = Schedule(shape, warmup, decay, final)
    step = data.draw(st.integers(0, horizon + 5))
    assert 0 <= schedule.factor(step, step / horizon) <= 1
    assert schedule.factor(horizon - 1, (horizon - 1) / horizon) > 0, "the last update counts"
    if shape == "wsd" and step / horizon <= 1 - decay:
        assert schedule.factor(step, step / horizon) >= schedule.factor(step, None)


@given(SHAPES, st.integers(0, 50), FRACTIONS, FRACTIONS, st.integers(1, 200))
def test_a_factor_rises_then_falls(
    shape: Shape, warmup: int, decay: float, final: float, horizon: int
) -> None:
    found = factors(Schedule(shape, warmup, decay, final), horizon, horizon)
    top = found.index(max(found))
    assert found[: top + 1] == sorted(found[: top + 1])
    assert found[top:] == sorted(found[top:], reverse=True)
