"""A run's memory as it goes: all of its processes, and seldom enough to cost nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from llmtrain.machine import live_memory
from llmtrain.machine.live_memory import LiveMemory, MemoryMeter
from llmtrain.machine.memory_pressure import Bound
from llmtrain.machine.memory_readings import AcceleratorMemory

MB = 10**6
HOLDS = "block = b'x' * 100_000_000; print(flush=True); input()"


def meter(launcher_pid: int | None = None) -> MemoryMeter:
    return MemoryMeter(launcher_pid=launcher_pid, is_on_cpu=True, device_index=None)


def test_children_count() -> None:
    before = meter().now()
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        during = meter().now()
        child.communicate(b"\n")
    assert 95 * MB < during.process_bytes - before.process_bytes < 160 * MB
    assert during.accelerator is None


@pytest.mark.skipif(sys.platform == "win32", reason="os.getppid is not the shell's there")
def test_a_launchers_ranks_count_and_itself_does_not() -> None:
    script = (
        "import os; from llmtrain.machine.live_memory import MemoryMeter;"
        "from llmtrain.machine.memory_usage import resident_bytes;"
        "meter = MemoryMeter(launcher_pid=os.getppid(), is_on_cpu=True, device_index=None);"
        "print(meter.now().process_bytes, resident_bytes())"
    )
    with_sibling = f"""
import subprocess, sys
block = b"x" * 150_000_000
sibling = subprocess.Popen(
    [sys.executable, "-c", {HOLDS!r}], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
sibling.stdout.readline()
subprocess.run([sys.executable, "-c", {script!r}], check=True)
sibling.communicate(b"\\n")
"""
    done = subprocess.run(
        [sys.executable, "-c", with_sibling], capture_output=True, text=True, check=True
    )
    told, own = map(int, done.stdout.split())
    assert 95 * MB < told - own < 145 * MB


def test_others_are_looked_at_now_and_then_and_oneself_always(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks: list[int] = []
    now = [100.0]
    own = iter(range(10, 100))

    def read_bounds() -> list[Bound]:
        looks.append(1)
        now[0] += 0.5  # so long it takes
        return [Bound("the machine", 1000, 400), Bound("the control group", 500, 450)]

    monkeypatch.setattr(live_memory.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(live_memory, "read_bounds", read_bounds)
    monkeypatch.setattr(live_memory, "resident_bytes", lambda pid=None: next(own))
    watched = meter()
    first = watched.now()
    assert (first.available_bytes, first.percent) == (50, 90.0)
    now[0] += 49.0  # half a second may be taken each fifty
    second = watched.now()
    assert second.process_bytes == first.process_bytes + 1
    assert len(looks) == 1
    now[0] += 2.0
    watched.now()
    assert len(looks) == 2


def test_a_system_that_refuses_leaves_figures_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> list[Bound]:
        raise OSError

    monkeypatch.setattr(live_memory, "read_bounds", refuse)
    told = meter().now()
    assert told.process_bytes > 0
    assert (told.available_bytes, told.percent) == (None, None)


def test_the_percentage_is_that_of_what_computes() -> None:
    gpu = AcceleratorMemory("cuda", 0, "RTX", total_bytes=1000, available_bytes=900)
    assert LiveMemory(1, 1, 50.0, gpu).tightest_percent == 10.0
    assert LiveMemory(1, 1, 50.0, None).tightest_percent == 50.0
