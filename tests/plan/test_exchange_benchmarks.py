"""An exchange between processes is timed once for their number and the cores that they share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llmtrain.machine.facts import ExchangeTimes
from llmtrain.plan import exchange_benchmarks
from llmtrain.plan.exchange_benchmarks import exchange_probe
from tests.machines import CPU


def test_it_is_timed_once_for_so_many_processes_on_so_many_cores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[int] = []

    def time_exchange(processes: int) -> ExchangeTimes:
        asked.append(processes)
        return ExchangeTimes(1e-3 * processes, 1e-9, 1e-9)

    monkeypatch.setenv("LLMTRAIN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(exchange_benchmarks, "time_exchange", time_exchange)
    one_core = replace(CPU, cpu=replace(CPU.cpu, affinity_cores=1))
    for _ in range(2):
        for facts in (CPU, one_core):
            for processes in (2, 4):
                found = exchange_probe(facts, processes).times()
                assert found.latency_s == pytest.approx(1e-3 * processes)
    assert asked == [2, 4, 2, 4]
