"""Several processes are timed once, when a run begins that gains by it and has room for copies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llmtrain.errors import LlmtrainError
from llmtrain.machine.facts import Facts, ProcessTimes
from llmtrain.model.step_timing import Way
from llmtrain.plan import process_benchmarks
from llmtrain.plan.planner import make_plan
from llmtrain.plan.process_benchmarks import fastest, with_timed_processes
from llmtrain.plan.workload import Workload
from tests.clock import Clock
from tests.machines import CPU, GIB, LONG, WORKLOAD, wish

BOX = replace(CPU, cpu=replace(CPU.cpu, physical_cores=16, logical_cores=16))


class Timed:
    """Times of a step by so many processes, in place of real ones."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int, int]] = []
        self.bound: set[int] = set()  # processes that keep to NUMA nodes
        self.step_s = {1: 1.0, 2: 1.9, 4: 3.5, 8: 8.5}
        self.failure: str | None = None
        self.is_busy = False

    def time_processes(
        self, processes: int, _shape: object, way: Way, *_: object, is_bound: bool
    ) -> ProcessTimes:
        self.asked.append((processes, way.threads, way.micro_batch))
        self.bound |= {processes} if is_bound else set()
        if self.failure is not None and processes > 1:
            raise LlmtrainError(self.failure)
        step_s = self.step_s[processes] * (1 + len(self.asked) * self.is_busy)
        return ProcessTimes(step_s, step_s, 0.01, 0.0)


@pytest.fixture(autouse=True)
def timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Timed:
    """Nothing is really timed, and the cache is the test's own."""
    monkeypatch.setenv("LLMTRAIN_CACHE_DIR", str(tmp_path / "cache"))
    Clock().install(monkeypatch)
    timed = Timed()
    monkeypatch.setattr(process_benchmarks, "time_processes", timed.time_processes)
    return timed


def value(
    told: list[str] | None,
    facts: Facts = BOX,
    workload: Workload = replace(LONG, tokens_per_step=64 * 1024),  # noqa: B008 - frozen
) -> int | None:
    """The number that is found; where something listens, the run is about to begin."""
    announce = None if told is None else told.append
    choice = with_timed_processes(facts, wish(), workload, announce).timed_processes
    return None if choice is None else choice.value


def test_each_number_is_timed_in_turn_with_its_share_of_the_cores(timed: Timed) -> None:
    told: list[str] = []
    assert value(told) == 4
    numbers = [number for number, *_ in timed.asked]
    assert numbers == [1, 2, 4, 8, 8, 4, 2, 1]
    assert all(number * threads == 16 for number, threads, _ in timed.asked)
    assert told[-1] == (
        "timing a step by 1, 2, 4, 8 processes, once for this machine and shape: a minute"
    )


def test_what_is_saved_is_not_timed_again_and_serves_who_only_looks(timed: Timed) -> None:
    assert value(None) is None
    assert timed.asked == []
    assert value([]) == value([]) == value(None) == 4
    assert len(timed.asked) == 8


def test_the_plan_says_why(timed: Timed) -> None:
    workload = replace(LONG, tokens_per_step=64 * 1024)
    found = with_timed_processes(BOX, wish(), workload, lambda _: None)
    plan = make_plan(BOX, wish(), found)
    assert (plan.processes.value, plan.threads.value) == (4, 4)
    assert "by 4 processes of 4 threads" in plan.processes.reason
    assert make_plan(BOX, wish(processes=2), found).processes.reason == "asked for"


def test_processes_are_timed_on_the_numa_nodes_that_they_keep_to(timed: Timed) -> None:
    two_nodes = replace(BOX, cpu=replace(BOX.cpu, numa_cores=(8, 8)))
    assert value([]) == 4
    assert timed.bound == set()
    assert value([], facts=two_nodes) == 4
    assert timed.bound == {2, 4, 8}


def test_a_short_run_or_a_small_machine_is_not_timed(timed: Timed) -> None:
    assert value([], workload=replace(WORKLOAD, time_s=60.0)) is None
    two = replace(BOX, cpu=replace(BOX.cpu, affinity_cores=2))
    assert value([], facts=two) is None
    assert timed.asked == []


def test_copies_that_do_not_fit_are_not_tried(timed: Timed) -> None:
    small = replace(BOX, cpu=replace(BOX.cpu, memory_total_bytes=int(1.1 * GIB)))
    found = value([], facts=small)
    assert {number for number, *_ in timed.asked} < {1, 2, 4, 8}
    assert found is None or found < 8


def test_times_of_a_busy_machine_are_taken_again(timed: Timed) -> None:
    timed.is_busy = True
    assert value([]) == 1
    assert value(None) == 1
    assert len(timed.asked) == 8
    timed.is_busy = False
    assert value([]) == value([]) == 4
    assert len(timed.asked) == 16


def test_where_processes_cannot_meet_one_trains(timed: Timed) -> None:
    timed.failure = "no way to meet"
    told: list[str] = []
    assert value(told) is None
    assert told[-1] == "one process: no way to meet"


def test_the_noise_is_how_far_repetitions_differ() -> None:
    found = fastest([ProcessTimes(1.0, 1.2, 0.2, 0.0), ProcessTimes(1.1, 1.1, 0.1, 0.0)])
    assert (found.micro_s, found.synced_s, found.update_s) == (1.0, 1.1, 0.1)
    assert found.noise == pytest.approx(1.4 / 1.2 - 1)
