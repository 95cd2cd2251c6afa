"""Ways to compute are compared by CPU time, and measured longer where they come close."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from llmtrain.machine import timing
from llmtrain.machine.facts import FASTER_RATIO
from llmtrain.machine.timing import Timing, compare


class Clock:
    """A wall clock and a CPU clock that only move when something runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall_s = self.cpu_s = 0.0
        self.runs: list[str] = []
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.wall_s)
        monkeypatch.setattr(timing, "cpu_seconds", lambda: self.cpu_s)

    def run(self, name: str, *rounds: tuple[float, float]) -> Callable[[], None]:
        """Takes these wall and CPU seconds, one pair a round; the last pair from then on."""
        left = list(rounds)

        def run() -> None:
            wall_s, cpu_s = left.pop(0) if len(left) > 1 else left[0]
            self.wall_s += wall_s
            self.cpu_s += cpu_s
            self.runs.append(name)

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


ROUNDS: dict[str, Any] = {"budget_s": 0.0, "least_rounds": 3, "most_rounds": 9}


def test_each_part_counts_with_its_median_wall_and_its_least_cpu_time(clock: Clock) -> None:
    parts = [clock.run("a", (5, 9), (2, 8), (4, 7)), clock.run("a", (1, 2), (3, 3), (4, 4))]
    assert compare({"a": parts}, **ROUNDS) == {"a": Timing(7, 9)}


def test_ways_take_turns_until_the_budget_is_spent(clock: Clock) -> None:
    ways = {"a": [clock.run("a", (1, 1))], "b": [clock.run("b", (1, 9))]}
    compare(ways, budget_s=7.5, least_rounds=2, most_rounds=9)
    assert clock.runs == ["a", "b"] * 4


@pytest.mark.parametrize(
    ("share", "rounds"), [(0.5, 3), (FASTER_RATIO * 0.9, 12), (FASTER_RATIO * 1.1, 12), (1.5, 3)]
)
def test_a_close_comparison_is_measured_longer(clock: Clock, share: float, rounds: int) -> None:
    ways = {"a": [clock.run("a", (1, 1))], "b": [clock.run("b", (1, share))]}
    compare(ways, **ROUNDS)
    assert clock.runs.count("a") == rounds


def test_a_thread_that_waits_for_a_core_changes_nothing(clock: Clock) -> None:
    """Wall time is ten times as long for one way, as on a busy machine; CPU time is not."""
    ways = {"a": [clock.run("a", (1, 1))], "b": [clock.run("b", (10, 0.5))]}
    found = compare(ways, **ROUNDS)
    assert found["b"].ratio_to(found["a"]) == 0.5


def test_what_is_shorter_than_a_tick_of_the_cpu_clock_is_timed_by_the_wall(clock: Clock) -> None:
    """Under `ulimit -t` Linux counts CPU time in ticks of some milliseconds."""
    ways = {
        "usual": [clock.run("usual", (0.003, 0.0))],
        "other": [clock.run("other", (0.001, 0.0))],
    }
    found = compare(ways, budget_s=0.0, least_rounds=2, most_rounds=2)
    assert found["other"].ratio_to(found["usual"]) == pytest.approx(1 / 3)
