"""Read how much memory is in use: the machine's, a control group's, a process tree's.

psutil reads it. If psutil is missing or fails, the standard library gives less: the machine's
memory, and of this process alone its peak.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from llmtrain.machine.cgroup import read_limited_groups, read_limits, read_memory_usage
from llmtrain.machine.memory_pressure import Bound
from llmtrain.machine.memory_readings import GroupUse, ProcessMemory, SystemMemory
from llmtrain.machine.rlimits import read_mapped

_KIB = 1024

T = TypeVar("T")


def read_system_memory(root: Path = Path("/")) -> SystemMemory:
    """Return the machine's memory, and the control group's limit found under `root`."""
    source, total_bytes, available_bytes = _read_machine()
    used_bytes = total_bytes - available_bytes
    limit_bytes = read_limits(root).memory_limit_bytes
    limited = limit_bytes is not None and limit_bytes < total_bytes
    return SystemMemory(
        total_bytes=total_bytes,
        available_bytes=available_bytes,
        used_bytes=used_bytes,
        percent=round(100 * used_bytes / total_bytes, 1),
        limit_bytes=limit_bytes if limited else None,
        limit_used_bytes=read_memory_usage(root) if limited else None,
        source=source,
    )


def read_bounds(root: Path = Path("/")) -> list[Bound]:
    """Return every limit on this process's memory, with the bytes in use. Raises OSError.

    Takes under a millisecond.
    """
    _, total_bytes, available_bytes = _read_machine()
    swap_bytes = _read_free_swap_bytes()
    bounds = [Bound("the machine", total_bytes, total_bytes - available_bytes, swap_bytes)]
    for number, group in enumerate(read_limited_groups(root)):
        if group.limit_bytes < total_bytes:
            room = swap_bytes if group.swap_bytes is None else min(swap_bytes, group.swap_bytes)
            name = "the control group" if number == 0 else f"control group {group.path}"
            bounds.append(Bound(name, group.limit_bytes, group.used_bytes, room))
    for own in read_mapped(root):
        bounds.append(Bound(own.name, own.limit_bytes, own.used_bytes, is_per_process=True))
    return bounds


def read_group_use(pid: int | None = None, root: Path = Path("/")) -> GroupUse | None:
    """Return the limited control group of a process that has the least left; None: no limit.

    A limit above the machine's memory does not count.
    """
    _, total_bytes, _ = _read_machine()
    groups = [g for g in read_limited_groups(root, pid) if g.limit_bytes < total_bytes]
    tightest = min(groups, key=lambda g: g.limit_bytes - g.used_bytes, default=None)
    if tightest is None:
        return None
    used_bytes, limit_bytes = tightest.used_bytes, tightest.limit_bytes
    return GroupUse(
        path=str(tightest.path),
        total_bytes=limit_bytes,
        available_bytes=max(0, limit_bytes - used_bytes),
        used_bytes=used_bytes,
        percent=round(100 * used_bytes / limit_bytes, 1),
    )


def read_process_memory(pid: int | None = None) -> ProcessMemory:
    """Return the memory of this process, or of `pid`, with its descendants.

    Where Linux says so, a descendant counts with its share of what several processes map: torch's
    compiler forks one for every core, and each shows the first's memory as its own. Elsewhere every
    process of the machine is read, which takes milliseconds. A descendant that ends meanwhile is
    left out. Raises ProcessLookupError if the process itself has ended.
    """
    return _with_fallback(lambda: _psutil_tree(pid), lambda: _own_tree(pid))


def resident_bytes(pid: int | None = None) -> int:
    """Return the resident memory of one process. Takes a tenth of a millisecond.

    Raises ProcessLookupError if it has ended.
    """
    return _with_fallback(lambda: _psutil_rss(pid), lambda: _own_peak_rss(pid))


def peak_resident_bytes() -> int:
    """Return this process's peak of resident memory. Takes a tenth of a millisecond."""
    return _read_peak(None) or resident_bytes()


def _read_machine() -> tuple[str, int, int]:
    """Return the source, total bytes and available bytes."""

    def from_psutil() -> tuple[str, int, int]:
        import psutil

        memory = psutil.virtual_memory()
        return "psutil", memory.total, memory.available

    return _with_fallback(from_psutil, _machine_from_os)


def _machine_from_os() -> tuple[str, int, int]:
    if sys.platform == "win32":
        raise OSError("memory cannot be read on Windows without psutil")
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    total_bytes = page_bytes * os.sysconf("SC_PHYS_PAGES")
    if sys.platform == "darwin":  # does not report how much is free
        return "os", total_bytes, total_bytes
    return "os", total_bytes, page_bytes * os.sysconf("SC_AVPHYS_PAGES")


def _read_free_swap_bytes() -> int:
    """Return the bytes that could be swapped out before any process is killed."""
    if sys.platform == "darwin":  # its swap grows on the disk
        return shutil.disk_usage("/").free

    def from_psutil() -> int:
        import psutil

        return psutil.swap_memory().free

    return _with_fallback(from_psutil, lambda: 0)


def _psutil_tree(pid: int | None) -> ProcessMemory:
    import psutil

    def share_bytes(process: psutil.Process) -> int:
        if sys.platform == "linux":
            with suppress(psutil.AccessDenied):
                return int(process.memory_full_info().pss)
        return int(process.memory_info().rss)

    descendants = []
    for child in _descendants(psutil.Process(pid).pid):
        with suppress(psutil.Error):
            descendants.append(share_bytes(psutil.Process(child)))
    own_bytes, others_bytes = _psutil_rss(pid), sum(descendants)
    # The kernel updates its peak lazily: it can be less than the current value.
    peak_bytes = max(own_bytes, _read_peak(pid))
    return ProcessMemory(
        own_bytes + others_bytes, peak_bytes + others_bytes, 1 + len(descendants), "psutil"
    )


def _descendants(pid: int) -> list[int]:
    """Return the ids of a process's descendants, from Linux's own lists where there are any."""
    if sys.platform != "linux" or not Path(f"/proc/{pid}/task/{pid}/children").exists():
        import psutil

        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    found, unread = list[int](), [pid]
    while unread:
        for thread in _entries(Path(f"/proc/{unread.pop()}/task")):
            with suppress(OSError):  # the thread has ended
                children = [int(child) for child in (thread / "children").read_text().split()]
                found += children
                unread += children
    return found


def _entries(directory: Path) -> list[Path]:
    """Return what is in a directory of /proc; nothing where its process has ended."""
    with suppress(OSError):
        return list(directory.iterdir())
    return []


def _psutil_rss(pid: int | None) -> int:
    import psutil

    rss_bytes = psutil.Process(pid).memory_info().rss
    if rss_bytes == 0:  # a zombie: it has ended, and its parent has not collected its exit code
        raise ProcessLookupError(f"process {pid} has ended")
    return rss_bytes


def _own_tree(pid: int | None) -> ProcessMemory:
    """Return a process's peak as the memory of its tree, which needs psutil to be read."""
    peak_bytes = _own_peak_rss(pid)
    return ProcessMemory(peak_bytes, peak_bytes, 1, "resource")


def _own_peak_rss(pid: int | None) -> int:
    if sys.platform == "win32" or pid not in (None, os.getpid()):
        raise OSError("the memory of a process cannot be read here without psutil")
    import resource

    unit_bytes = 1 if sys.platform == "darwin" else _KIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes


def _read_peak(pid: int | None) -> int:
    """Return a process's peak of resident memory; 0 if the system does not report it.

    Linux: VmHWM. The value of getrusage includes the parent's memory before this process started.
    """
    with suppress(OSError, ValueError):
        return _PEAK_READERS.get(sys.platform, _own_peak_rss)(pid)
    return 0


def _linux_peak(pid: int | None) -> int:
    status = Path("/proc", "self" if pid is None else str(pid), "status")
    lines = status.read_text(encoding="utf-8", errors="replace").splitlines()
    peaks = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return _KIB * int(peaks[0]) if peaks else 0


def _windows_peak(pid: int | None) -> int:
    import psutil

    with _psutil_errors_mapped():
        return int(psutil.Process(pid).memory_info()._asdict()["peak_wset"])


_PEAK_READERS = {"linux": _linux_peak, "win32": _windows_peak}


def _with_fallback(from_psutil: Callable[[], T], from_standard_library: Callable[[], T]) -> T:
    """Return psutil's answer, or the standard library's if psutil is missing or fails.

    Raises ProcessLookupError if a process has ended, OSError if neither has an answer.
    """
    try:
        with _psutil_errors_mapped():
            return from_psutil()
    except ProcessLookupError:
        raise
    except OSError:
        return from_standard_library()


@contextmanager
def _psutil_errors_mapped() -> Iterator[None]:
    try:
        import psutil
    except ImportError as error:
        raise OSError("psutil is not installed") from error
    try:
        yield
    except psutil.NoSuchProcess as error:
        raise ProcessLookupError(f"process {error.pid} has ended") from error
    except psutil.Error as error:
        raise OSError(f"psutil: {error}") from error
