"""psutil reads memory, and the standard library where psutil is missing or refuses."""

from __future__ import annotations

import mmap
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmtrain.machine import memory_usage
from llmtrain.machine.gpu_memory import read_accelerator_memory, read_accelerators_from_outside
from llmtrain.machine.memory_readings import AcceleratorMemory, GroupUse
from llmtrain.machine.memory_usage import (
    peak_resident_bytes,
    read_bounds,
    read_group_use,
    read_process_memory,
    read_system_memory,
    resident_bytes,
)

MB = 10**6
GIB = 2**30
KIB = 1024


@pytest.fixture
def no_psutil(monkeypatch: pytest.MonkeyPatch) -> None:
    """psutil cannot be imported."""
    monkeypatch.setitem(sys.modules, "psutil", None)


def touched(size: int) -> mmap.mmap:
    """`size` bytes, all of them resident. Not from malloc, which may keep what is freed."""
    block = mmap.mmap(-1, size)
    block[::4096] = b"\1" * len(range(0, size, 4096))
    return block


def test_touching_memory_makes_it_resident() -> None:
    before = resident_bytes()
    block = touched(200 * MB)
    grown = resident_bytes() - before
    assert 190 * MB < grown < 230 * MB
    assert peak_resident_bytes() >= before + 190 * MB
    block.close()
    assert resident_bytes() < before + 50 * MB
    assert peak_resident_bytes() >= before + 190 * MB


def test_a_child_counts() -> None:
    script = "block = b'x' * 100_000_000; print(flush=True); input()"
    before = read_process_memory()
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()  # the block is there
        during = read_process_memory()
        child.communicate(b"\n")
    assert during.processes == before.processes + 1
    assert during.resident_bytes - before.resident_bytes > 95 * MB
    assert during.peak_resident_bytes >= during.resident_bytes


def test_another_process_is_seen_with_its_children_until_it_ends() -> None:
    inner = "block = b'x' * 100_000_000; print(flush=True); input()"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", outer], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        tree, alone = read_process_memory(parent.pid), resident_bytes(parent.pid)
        assert tree.processes == 2
        assert tree.resident_bytes > alone + 95 * MB
        assert tree.peak_resident_bytes >= tree.resident_bytes
        assert parent.stdin is not None
        parent.stdin.close()
        if sys.platform != "win32":
            wait_for_zombie(parent.pid)
            for read in (read_process_memory, resident_bytes):
                with pytest.raises(ProcessLookupError):
                    read(parent.pid)
    with pytest.raises(ProcessLookupError):
        read_process_memory(parent.pid)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what is shared")
def test_what_descendants_share_is_counted_once() -> None:
    script = """
import os, sys, time
block = b"x" * 100_000_000
for _ in range(3):
    if os.fork() == 0:
        time.sleep(60)
print(flush=True)
input()
os.killpg(0, 9)
"""
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        tree = read_process_memory(parent.pid)
        parent.communicate(b"\n")
    assert tree.processes == 4
    assert 95 * MB < tree.resident_bytes < 250 * MB  # four times the block would be 400


def wait_for_zombie(pid: int) -> None:
    """The process has ended, and its parent, which is this one, has not collected its code."""
    import psutil

    while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)


def test_a_descendant_that_ends_while_it_is_read_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    monkeypatch.setattr(memory_usage, "_descendants", lambda _: [ended.pid])
    assert read_process_memory().processes == 1


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's lists of children")
def test_a_descendant_that_ends_while_they_are_listed_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    entries = memory_usage._entries

    def ending(directory: Path) -> list[Path]:
        if directory == Path(f"/proc/{child.pid}/task"):
            child.communicate(b"\n")
        return entries(directory)

    monkeypatch.setattr(memory_usage, "_entries", ending)
    assert read_process_memory().source == "psutil"
    assert child.returncode == 0


def test_descendants_are_those_that_psutil_finds() -> None:
    import psutil

    inner = "import sys; print(flush=True); sys.stdin.read()"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    script = f"""
import subprocess, sys, threading
start = lambda: subprocess.run([sys.executable, "-c", {outer!r}])
threads = [threading.Thread(target=start) for _ in range(2)]
for thread in threads:
    thread.start()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        parent.stdout.readline(), parent.stdout.readline()
        expected = {each.pid for each in psutil.Process(parent.pid).children(recursive=True)}
        found = memory_usage._descendants(parent.pid)
        parent.communicate()
    assert len(expected) == 4
    assert set(found) == expected
    assert len(found) == 4


@pytest.mark.parametrize("read", [resident_bytes, peak_resident_bytes])
def test_one_process_is_read_in_under_a_millisecond(read: Callable[[], int]) -> None:
    taken_s = []
    for _ in range(20):
        start_s = time.perf_counter()
        read()
        taken_s.append(time.perf_counter() - start_s)
    assert min(taken_s) < 1e-3


def test_the_figures_of_the_system_add_up() -> None:
    memory = read_system_memory()
    assert memory.used_bytes + memory.available_bytes == memory.total_bytes
    assert memory.percent == pytest.approx(100 * memory.used_bytes / memory.total_bytes, abs=0.1)


def test_the_limit_of_the_control_group_is_shown_where_it_is_below_the_total(
    tmp_path: Path,
) -> None:
    groups = tmp_path / "sys/fs/cgroup"
    groups.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    (groups / "memory.current").write_text("4096\n")
    (groups / "memory.max").write_text("8192\n")
    limited = read_system_memory(tmp_path)
    assert (limited.limit_bytes, limited.limit_used_bytes) == (8192, 4096)
    (groups / "memory.max").write_text(f"{limited.total_bytes + 1}\n")
    unlimited = read_system_memory(tmp_path)
    assert (unlimited.limit_bytes, unlimited.limit_used_bytes) == (None, None)
    assert read_group_use(root=tmp_path) is None


def test_of_several_groups_the_one_with_the_least_left_is_read(tmp_path: Path) -> None:
    inner = tmp_path / "sys/fs/cgroup/a/b"
    inner.mkdir(parents=True)
    (tmp_path / "proc/77").mkdir(parents=True)
    (tmp_path / "proc/77/cgroup").write_text("0::/a/b\n")
    for group, limit, current in ((inner, 9000, 2000), (inner.parent, 10000, 8000)):
        (group / "memory.max").write_text(f"{limit}\n")
        (group / "memory.current").write_text(f"{current}\n")
    (inner.parent / "memory.stat").write_text("inactive_file 500\n")

    assert read_group_use(77, tmp_path) == GroupUse(str(inner.parent), 10000, 2500, 7500, 75.0)
    assert read_group_use(78, tmp_path) is None


def test_the_machine_and_every_group_below_its_total_bound_memory(tmp_path: Path) -> None:
    inner = tmp_path / "sys/fs/cgroup/a/b"
    inner.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/a/b\n")
    limits = {inner: 8192, inner.parent: 16384, inner.parent.parent: 2**60 - 1}
    for group, limit in limits.items():
        (group / "memory.max").write_text(f"{limit}\n")
        (group / "memory.current").write_text("4096\n")
        (group / "memory.swap.max").write_text("0\n")

    machine, own, above = read_bounds(tmp_path)

    assert machine.name == "the machine"
    assert machine.limit_bytes == read_system_memory().total_bytes
    assert 0 < machine.used_bytes < machine.limit_bytes
    assert (own.name, own.limit_bytes, own.used_bytes) == ("the control group", 8192, 4096)
    assert (above.name, above.limit_bytes) == (f"control group {inner.parent}", 16384)
    assert own.swap_bytes == 0


def test_free_swap_counts_for_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_usage, "_read_free_swap_bytes", lambda: 3 * GIB)
    assert read_bounds()[0].swap_bytes == 3 * GIB


@pytest.mark.skipif(sys.platform != "linux", reason="limits on what is mapped, as Linux counts it")
def test_a_limit_of_the_process_bounds_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    limits = {resource.RLIMIT_DATA: 3 * GIB}
    infinite = resource.RLIM_INFINITY
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limits.get(kind, infinite), infinite))
    own = read_bounds()[-1]
    assert (own.name, own.limit_bytes, own.is_per_process) == ("RLIMIT_DATA", 3 * GIB, True)
    block = mmap.mmap(-1, 200 * MB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    block[::4096] = b"\1" * len(range(0, 200 * MB, 4096))
    grown = read_bounds()[-1].used_bytes - own.used_bytes
    block.close()
    assert 180 * MB < grown < 210 * MB


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such fall-back")
@pytest.mark.usefixtures("no_psutil")
def test_without_psutil_the_standard_library_answers() -> None:
    block = touched(100 * MB)
    assert read_system_memory().source == "os"
    own = read_process_memory()
    assert (own.source, own.processes) == ("resource", 1)
    assert own.peak_resident_bytes == own.resident_bytes == resident_bytes() > 100 * MB
    assert peak_resident_bytes() > 100 * MB
    assert read_bounds()[0].limit_bytes == read_system_memory().total_bytes
    block.close()


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such fall-back")
def test_psutil_and_the_standard_library_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = read_system_memory()
    monkeypatch.setitem(sys.modules, "psutil", None)
    ours = read_system_memory()
    assert ours.total_bytes == pytest.approx(theirs.total_bytes, rel=0.05)


@pytest.mark.usefixtures("no_psutil")
def test_without_psutil_another_process_cannot_be_read() -> None:
    for read in (read_process_memory, resident_bytes):
        with pytest.raises(OSError, match="without psutil"):
            read(1)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such fall-back")
def test_where_psutil_refuses_the_standard_library_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import psutil

    def refuse(*_: Any) -> None:
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil, "Process", refuse)
    assert read_process_memory().source == "resource"
    assert resident_bytes() > 0


def test_where_nothing_answers_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise OSError("no such file")

    monkeypatch.setitem(sys.modules, "psutil", None)
    monkeypatch.setattr(memory_usage, "_machine_from_os", refuse)
    with pytest.raises(OSError, match="no such file"):
        read_system_memory()


@pytest.mark.skipif(sys.platform != "linux", reason="VmHWM")
def test_a_peak_is_the_process_own_and_not_its_parents() -> None:
    """getrusage's begins with what the parent held."""
    code = "from llmtrain.machine.memory_usage import peak_resident_bytes as p; print(p())"
    block = touched(400 * MB)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    block.close()
    assert int(done.stdout) < 200 * MB


def test_accelerators_are_those_torch_can_use() -> None:
    import torch

    expected = torch.cuda.device_count() or int(torch.backends.mps.is_available())
    found = read_accelerator_memory()
    assert len(found) == expected
    for gpu in found:
        assert gpu.allocated_bytes is not None
        assert gpu.reserved_bytes is not None
        assert gpu.allocated_bytes <= gpu.reserved_bytes <= gpu.total_bytes


def test_from_outside_nothing_is_said_of_an_allocator() -> None:
    for gpu in read_accelerators_from_outside():
        assert gpu.total_bytes > 0
        assert (gpu.allocated_bytes, gpu.reserved_bytes, gpu.peak_reserved_bytes) == (None,) * 3


def test_an_accelerators_figures_add_up() -> None:
    gpu = AcceleratorMemory("cuda", 0, "RTX", total_bytes=1000, available_bytes=250)
    assert (gpu.used_bytes, gpu.percent) == (750, 75.0)
    silent = AcceleratorMemory("cuda", 0, "RTX", total_bytes=1000, available_bytes=None)
    assert (silent.used_bytes, silent.percent) == (None, None)


def test_reading_memory_does_not_import_torch() -> None:
    script = (
        "import sys; from llmtrain.machine import memory_usage; memory_usage.read_process_memory();"
        "memory_usage.read_system_memory(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
