"""Every way to read memory that works here tells the same, and sees what is allocated."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmtrain.machine import memory_usage, windows
from llmtrain.machine.memory_readers import (
    PosixReader,
    ProcReader,
    PsutilReader,
    descendants_resident_bytes,
    parse_ps,
    parse_vm_stat,
    standard_reader,
)
from llmtrain.machine.memory_readings import (
    AcceleratorMemory,
    Available,
    MemoryReader,
    ProcessMemory,
)
from llmtrain.machine.memory_usage import (
    GroupUse,
    read_accelerator_memory,
    read_accelerators_from_outside,
    read_bounds,
    read_group_use,
    read_process_memory,
    read_system_memory,
    readers,
    resident_bytes,
)

MB = 10**6
GIB = 2**30


@pytest.fixture(params=[PsutilReader, standard_reader], ids=["psutil", "standard"])
def reader(request: pytest.FixtureRequest) -> MemoryReader:
    made: MemoryReader = request.param()
    return made


def touched(size: int) -> mmap.mmap:
    """`size` bytes, all of them resident. Not from malloc, which may keep what is freed."""
    block = mmap.mmap(-1, size)
    block[::4096] = b"\1" * len(range(0, size, 4096))
    return block


def test_psutil_and_the_standard_library_agree() -> None:
    ours, theirs = PsutilReader(), standard_reader()
    assert ours.source != theirs.source
    assert ours.available().total_bytes == pytest.approx(theirs.available().total_bytes, rel=0.05)
    mine, other = ours.process_tree(), theirs.process_tree()
    assert mine.resident_bytes == pytest.approx(other.resident_bytes, rel=0.05)
    assert ours.resident_bytes() == pytest.approx(theirs.resident_bytes(), rel=0.05)


def test_touching_memory_makes_it_resident(reader: MemoryReader) -> None:
    before = reader.resident_bytes()
    block = touched(200 * MB)
    grown = reader.resident_bytes() - before
    assert 190 * MB < grown < 230 * MB
    assert reader.peak_resident_bytes() >= before + 190 * MB
    block.close()
    assert reader.resident_bytes() < before + 50 * MB
    assert reader.peak_resident_bytes() >= before + 190 * MB


@pytest.mark.skipif(sys.platform == "win32", reason="without psutil, Windows' children are unseen")
def test_a_child_counts(reader: MemoryReader) -> None:
    script = "block = b'x' * 100_000_000; print(flush=True); input()"
    before = reader.process_tree()
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()  # the block is there
        during = reader.process_tree()
        child.communicate(b"\n")
    assert during.processes == before.processes + 1
    assert during.resident_bytes - before.resident_bytes > 95 * MB
    assert during.peak_resident_bytes >= during.resident_bytes


@pytest.mark.skipif(sys.platform == "win32", reason="without psutil, Windows' others are unseen")
def test_another_process_is_seen_with_its_children_until_it_ends(reader: MemoryReader) -> None:
    inner = "block = b'x' * 100_000_000; print(flush=True); input()"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", outer], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        tree, alone = reader.process_tree(parent.pid), reader.resident_bytes(parent.pid)
        assert tree.processes == 2
        assert tree.resident_bytes > alone + 95 * MB
        assert tree.peak_resident_bytes >= tree.resident_bytes
        assert parent.stdin is not None
        parent.stdin.close()
        wait_until_unburied(parent.pid)
        for look in (reader.process_tree, reader.resident_bytes):
            with pytest.raises(ProcessLookupError):
                look(parent.pid)
    with pytest.raises(ProcessLookupError):
        reader.process_tree(parent.pid)


def wait_until_unburied(pid: int) -> None:
    """The process has ended, and its parent, who is this one, has not asked for its code."""
    import psutil

    while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)


def test_one_process_is_read_in_under_a_millisecond() -> None:
    taken_s = []
    for _ in range(20):
        start_s = time.perf_counter()
        resident_bytes()
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


def test_of_several_groups_the_one_with_the_least_left_is_told(tmp_path: Path) -> None:
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


@pytest.mark.skipif(sys.platform == "win32", reason="reads an invented Linux")
def test_swap_is_told(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 16 kB\nMemAvailable: 4 kB\nSwapFree: 8 kB\n")
    assert ProcReader(tmp_path).available() == Available(16 * 1024, 4 * 1024, 8 * 1024)


def test_without_psutil_the_standard_library_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert [reader.source for reader in readers()] == [standard_reader().source]
    assert read_system_memory().source == read_process_memory().source == standard_reader().source


def test_where_psutil_refuses_the_standard_library_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import psutil

    def refuse(pid: int | None) -> None:
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil, "Process", refuse)
    assert read_process_memory().source == standard_reader().source
    assert resident_bytes() > 0


def test_where_nothing_answers_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory_usage, "readers", lambda: iter([ProcReader(tmp_path)]))
    with pytest.raises(OSError, match="meminfo"):
        read_system_memory()


@pytest.mark.skipif(sys.platform == "win32", reason="ps is a Unix tool")
def test_ps_agrees_with_psutil() -> None:
    try:
        tree = PosixReader().process_tree()
    except FileNotFoundError:
        pytest.skip("no ps here")
    assert tree.resident_bytes == pytest.approx(PsutilReader().resident_bytes(), rel=0.3)


@pytest.mark.skipif(sys.platform == "win32", reason="reads an invented Linux")
def test_an_invented_proc(tmp_path: Path) -> None:
    page = os.sysconf("SC_PAGE_SIZE")
    me, child, stranger = os.getpid(), os.getpid() + 1, os.getpid() + 2

    def stat(process: int, parent: int, pages: int) -> None:
        (tmp_path / str(process)).mkdir()
        fields = f"S {parent} " + "0 " * 19 + f"{pages} 0"
        (tmp_path / str(process) / "stat").write_text(f"{process} (a) b (c) {fields}\n")

    stat(me, 1, 10)
    stat(child, me, 7)
    stat(stranger, 1, 1000)
    (tmp_path / "self").mkdir()
    (tmp_path / "self/statm").write_text("99 10 1 1 0 1 0\n")
    (tmp_path / "self/status").write_text("Name:\tpython\nVmHWM:\t    2000 kB\nThreads:\t1\n")
    (tmp_path / "meminfo").write_text("MemTotal: 16 kB\nMemFree: 2 kB\nMemAvailable: 4 kB\n")
    reader = ProcReader(tmp_path)
    assert reader.available() == Available(16 * 1024, 4 * 1024)
    assert reader.process_tree() == ProcessMemory(17 * page, 2_048_000 + 7 * page, 2, "/proc")


def test_descendants_are_counted_once_even_in_a_loop() -> None:
    table = {1: (0, 1), 2: (1, 2), 3: (2, 4), 4: (3, 8), 5: (1, 16), 6: (7, 32), 7: (6, 64)}
    assert sorted(descendants_resident_bytes(table, 2)) == [4, 8]
    assert descendants_resident_bytes(table, 6) == [64]
    assert descendants_resident_bytes(table, 99) == []


def test_ps_and_vm_stat_are_read_in_their_own_units() -> None:
    assert parse_ps("    1     0  1200\n  321     1    16\n\n") == {
        1: (0, 1200 * 1024),
        321: (1, 16 * 1024),
    }
    printed = (
        "Mach Virtual Memory Statistics: (page size of 16384 bytes)\n"
        "Pages free:                               10.\n"
        "Pages active:                          30000.\n"
        "Pages inactive:                           20.\n"
        "Pages speculative:                         3.\n"
    )
    assert parse_vm_stat(printed) == 33 * 16384


@pytest.mark.skipif(sys.maxsize < 2**32, reason="sizes of 64-bit Windows")
def test_windows_structures_have_the_sizes_of_its_headers() -> None:
    assert ctypes.sizeof(windows._MemoryStatus) == 64
    assert ctypes.sizeof(windows._ProcessCounters) == 72


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
