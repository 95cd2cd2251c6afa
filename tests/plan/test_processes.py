"""The number of processes on a CPU follows from times, of invented machines."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llmtrain.machine.facts import CpuFacts, Facts, ProcessTimes
from llmtrain.plan.processes import choose_by_time, is_worth_timing, several_processes
from tests.machines import CPU, LONG, WORKLOAD, products, step_times, wish

CORES = 16


def machine(cores: int, **changes: Any) -> Facts:
    cpu: CpuFacts = replace(CPU.cpu, physical_cores=cores, logical_cores=cores, **changes)
    return replace(CPU, cpu=replace(cpu, affinity_cores=cores))


def times(micro_s: float, synced_s: float, update_s: float, noise: float = 0.01) -> ProcessTimes:
    return ProcessTimes(micro_s, synced_s, update_s, noise)


@pytest.mark.parametrize(
    ("cores", "numbers"),
    [(1, []), (2, []), (4, [2]), (6, [2, 3]), (16, [2, 4, 8]), (64, [2, 4, 8]), (7, [])],
)
def test_cores_are_shared_equally_by_two_threads_or_more(cores: int, numbers: list[int]) -> None:
    assert several_processes(machine(cores), wish(), WORKLOAD) == numbers


def test_a_step_has_a_window_for_each_process() -> None:
    few = replace(WORKLOAD, tokens_per_step=6 * WORKLOAD.shape.context)
    assert several_processes(machine(16), wish(), few) == [2]
    assert several_processes(machine(12), wish(), few) == [2, 3, 6]


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ({"processes": 1}, {}),
        ({"processes": 4}, {}),
        ({"threads": 3}, {}),
        ({"sharding": "shard"}, {}),
        ({"sharding": "hybrid"}, {}),
        ({}, {"launched_processes": 2}),
        ({}, {"sync_every": 30}),
        ({}, {"is_dpo": True}),
    ],
)
def test_what_is_decided_is_not_timed(options: dict[str, Any], changes: dict[str, Any]) -> None:
    assert several_processes(machine(16), wish(**options), replace(WORKLOAD, **changes)) == []


def test_threads_of_the_environment_are_not_divided() -> None:
    assert several_processes(machine(16, omp_threads=16), wish(), WORKLOAD) == []


def test_a_run_of_minutes_is_not_timed_and_one_of_an_hour_is() -> None:
    parts = replace(products(0.1, 0.1, 0.1), plain=step_times(0.1, 0.1, 0.1))
    assert is_worth_timing(LONG, parts)
    assert not is_worth_timing(replace(WORKLOAD, time_s=300.0), parts)
    step_s = 6 * 0.3 + 0.1  # of six micro-batches, two blocks and a head
    for seconds, expected in ((800, False), (1000, True)):
        tokens = round(seconds / step_s) * WORKLOAD.tokens_per_step
        assert is_worth_timing(replace(WORKLOAD, tokens=tokens), parts) is expected


def test_the_fastest_number_wins_with_figures() -> None:
    found = {1: times(1.0, 1.0, 0.1), 2: times(1.9, 2.0, 0.1), 4: times(3.4, 3.6, 0.2)}
    choice = choose_by_time(found, {1: 16, 2: 8, 4: 4}, CORES)
    assert choice.value == 4
    assert choice.reason == (
        "a step takes 14 s by 4 processes of 4 threads and 16.1 s by one, timed here"
    )


def test_the_update_and_the_exchange_count_by_what_is_accumulated() -> None:
    found = {1: times(1.0, 1.0, 0.1), 4: times(3.4, 4.0, 0.5)}
    assert choose_by_time(found, {1: 4, 4: 1}, CORES).value == 1
    assert choose_by_time(found, {1: 64, 4: 16}, CORES).value == 4


@pytest.mark.parametrize(("noise", "value"), [(0.01, 2), (0.03, 2), (0.06, 1), (0.2, 1)])
def test_a_gain_within_noise_does_not_count(noise: float, value: int) -> None:
    found = {1: times(1.0, 1.0, 0.0, noise), 2: times(1.8, 1.8, 0.0, noise)}
    choice = choose_by_time(found, {1: 8, 2: 4}, CORES)
    assert choice.value == value
    assert ("more than one has to be" in choice.reason) == (value == 1)


def test_a_small_gain_is_not_worth_copies_of_the_model() -> None:
    found = {1: times(1.0, 1.0, 0.0, 0.001), 2: times(1.94, 1.94, 0.0, 0.001)}
    choice = choose_by_time(found, {1: 8, 2: 4}, CORES)
    assert choice.value == 1
    assert choice.reason == (
        "a step takes 7.76 s by 2 processes of 8 threads and 8 s by one, timed here; "
        "more than one has to be 4% faster"
    )
