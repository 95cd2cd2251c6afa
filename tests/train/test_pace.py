"""What a run learns of its own speed, on an invented clock."""

from __future__ import annotations

import pytest

from llmtrain.profile.horizon import Horizon
from llmtrain.profile.schema import EvalSection
from llmtrain.train import pace
from llmtrain.train.pace import Pace


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that `time.monotonic` says; to be changed."""
    now = [1000.0]
    monkeypatch.setattr(pace.time, "monotonic", lambda: now[0])
    return now


def made(
    expected: dict[str, float] | None = None, *, startup_s: float = 4.0, first: bool = True
) -> Pace:
    return Pace(50.0, 6.0, startup_s, expected or {}, first_step_counts=first)


def test_time_before_this_sitting_counts(clock: list[float]) -> None:
    found = made()
    clock[0] += 7
    assert found.elapsed_s == 63
    assert found.startup_s == 10


def test_a_first_step_that_compiles_is_part_of_starting() -> None:
    for first, startup_s in ((True, 10), (False, 64)):
        found = made(first=first)
        for seconds in (54.0, 1.0, 1.0):
            found.record_step(seconds)
        assert found.startup_s == startup_s


def test_a_step_is_the_median_and_the_slow_one_is_recent() -> None:
    found = made()
    assert (found.step_s, found.slow_step_s) == (0, 0)
    for seconds in (9.0, 1.0, 1.0, 2.0, 1.0):
        found.record_step(seconds)
    assert (found.step_s, found.slow_step_s) == (1.0, 2.0)


def test_a_pace_is_known_after_three_steps_and_a_first_that_compiles_is_none() -> None:
    for first in (True, False):
        found = made(first=first)
        known = []
        for seconds in (20.0, 1.0, 1.0, 1.0):
            found.record_step(seconds)
            known.append(found.is_known)
        assert known == [False, False, first, True]
        assert found.slow_step_s == 1.0


def test_costs_are_expected_until_they_are_measured() -> None:
    found = made({"evaluation": 4.0, "save": 1.0})
    assert found.reserve_s == pace._EXIT_S
    found.record_cost("save", 100.0)  # no step yet to measure it by
    found.record_step(2.0)
    assert found.reserve_s == pytest.approx(pace._EXIT_S + pace._UNDERESTIMATED * (10))
    found.record_cost("evaluation", 3.0)
    assert found.reserve_s == pytest.approx(pace._EXIT_S + pace._UNDERESTIMATED * (3 + 2))


def test_a_machine_that_slows_down_slows_what_is_left_too() -> None:
    found = made()
    for _ in range(30):
        found.record_step(1.0)
    found.record_cost("evaluation", 5.0)
    for _ in range(2):
        found.record_step(2.0)
    assert found.reserve_s == pytest.approx(pace._EXIT_S + pace._UNDERESTIMATED * (10))


def test_a_machine_that_slows_down_much_takes_longer_to_exit_too() -> None:
    found = made()
    for _ in range(20):
        found.record_step(1.0)
    for _ in range(20):
        found.record_step(2.0)
    assert found.reserve_for_s() == pace._EXIT_S
    for _ in range(20):
        found.record_step(4.0)
    assert found.reserve_for_s() == 2 * pace._EXIT_S
    for _ in range(20):
        found.record_step(100.0)
    assert found.reserve_for_s() == pace._LONGEST_EXIT * pace._EXIT_S


def test_a_suspended_step_is_neither_the_pace_nor_trained_time() -> None:
    found = made()
    for _ in range(5):
        assert found.record_step(1.0) == 1.0
    assert found.record_step(600.0) == 1.0  # Ctrl-Z, or a laptop that was shut
    assert (found.step_s, found.slow_step_s) == (1.0, 1.0)
    assert found.record_step(1.5) == 1.5
    assert found.slow_step_s == 1.5


def test_a_machine_that_became_as_slow_is_believed() -> None:
    found = made()
    for _ in range(5):
        found.record_step(1.0)
    found.record_step(60.0)
    assert found.record_step(60.0) == 60.0
    assert found.slow_step_s == 60.0


def test_short_steps_may_vary() -> None:
    found = made()
    for _ in range(5):
        found.record_step(0.01)
    assert found.record_step(1.9) == 1.9
    assert found.slow_step_s == 1.9


def test_what_is_left_counts_what_follows_the_last_step_without_the_reserve() -> None:
    found = made({"evaluation": 2.0, "samples": 0.0, "save": 1.0})
    for _ in range(5):
        found.record_step(2.0)
    horizon, options = Horizon(steps=20, time_s=None), EvalSection(every_steps=10)
    assert found.remaining_s(horizon, options, 15, 20) == pytest.approx(5 * 2 + 4 + 2)
    assert found.remaining_s(horizon, options, 5, 20) == pytest.approx(15 * 2 + 4 + 4 + 2)
    found.record_cost("save", 0.5)
    assert found.remaining_s(horizon, options, 19, 20) == pytest.approx(2 + 4 + 0.5)
