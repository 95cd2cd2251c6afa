"""One memory reader for each way to ask: psutil, and where it cannot be had /proc or ps."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from llmtrain.machine.memory_readings import Available, MemoryReader, ProcessMemory

_KIB = 1024
_TOOL_TIMEOUT_S = 5
ProcessTable = Mapping[int, tuple[int, int]]  # process → (parent, resident bytes)


def standard_reader() -> MemoryReader:
    """The reader that needs only the standard library and fits this operating system."""
    reader: MemoryReader
    if sys.platform == "win32":
        from llmtrain.machine.windows import WindowsReader

        reader = WindowsReader()
    elif sys.platform == "linux":
        reader = ProcReader()
    else:
        reader = PosixReader()
    return reader


class PsutilReader:
    """psutil. Raises OSError, also where it is not installed."""

    source = "psutil"

    def __init__(self) -> None:
        try:
            import psutil
        except ImportError as error:
            raise OSError("psutil is not installed") from error
        self._psutil = psutil

    def available(self) -> Available:
        """What psutil makes of this operating system's figures."""
        with self._errors_mapped():
            memory = self._psutil.virtual_memory()
        return Available(memory.total, memory.available)

    def process_tree(self, pid: int | None = None) -> ProcessMemory:
        """The process and its descendants; a descendant that ends meanwhile is left out."""
        with self._errors_mapped():
            children = self._psutil.Process(pid).children(recursive=True)
        held: list[int] = []
        for child in children:
            try:
                held.append(child.memory_info().rss)
            except self._psutil.Error:
                continue
        own, peak = self.resident_bytes(pid), self.peak_resident_bytes(pid)
        return ProcessMemory.of(own, peak, held, self.source)

    def resident_bytes(self, pid: int | None = None) -> int:
        """One look at the process."""
        with self._errors_mapped():
            return _of_one_that_runs(self._psutil.Process(pid).memory_info().rss, pid)

    def peak_resident_bytes(self, pid: int | None = None) -> int:
        """From the system: psutil knows no peak on most."""
        return standard_reader().peak_resident_bytes(pid)

    @contextmanager
    def _errors_mapped(self) -> Iterator[None]:
        try:
            yield
        except self._psutil.NoSuchProcess as error:
            raise ProcessLookupError(f"psutil: {error}") from error
        except self._psutil.Error as error:
            raise OSError(f"psutil: {error}") from error


class ProcReader:
    """Linux: the files under /proc."""

    source = "/proc"

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc

    def available(self) -> Available:
        """MemTotal, and MemAvailable, which counts the cache that the kernel would give up."""
        fields = _kib_fields(self._proc / "meminfo")
        available = fields.get("MemAvailable", fields.get("MemFree"))
        if available is None or "MemTotal" not in fields:
            raise OSError(f"{self._proc / 'meminfo'} does not say how much memory there is")
        return Available(fields["MemTotal"], available, fields.get("SwapFree", 0))

    def process_tree(self, pid: int | None = None) -> ProcessMemory:
        """Every process whose line of parents leads to it."""
        held = descendants_resident_bytes(dict(self._processes()), pid or os.getpid())
        own, peak = self.resident_bytes(pid), self.peak_resident_bytes(pid)
        return ProcessMemory.of(own, peak, held, self.source)

    def resident_bytes(self, pid: int | None = None) -> int:
        """The second number of statm."""
        with _gone_means_ended(pid):
            pages = (self._of(pid) / "statm").read_text(encoding="ascii").split()[1]
        return _of_one_that_runs(int(pages) * _page_bytes(), pid)

    def peak_resident_bytes(self, pid: int | None = None) -> int:
        """VmHWM, where the kernel writes it: getrusage's begins with what the parent held."""
        with _gone_means_ended(pid):
            peak = _kib_fields(self._of(pid) / "status").get("VmHWM", 0)
        return peak or (_max_rss_bytes() if pid is None else 0)

    def _of(self, pid: int | None) -> Path:
        return self._proc / ("self" if pid is None else str(pid))

    def _processes(self) -> Iterator[tuple[int, tuple[int, int]]]:
        for stat in self._proc.glob("[0-9]*/stat"):
            try:
                text = stat.read_text(encoding="utf-8", errors="replace")
            except OSError:
                continue  # it ended while we were looking
            fields = text.rpartition(")")[2].split()  # the name before may hold anything
            yield int(stat.parent.name), (int(fields[1]), int(fields[21]) * _page_bytes())


class PosixReader:
    """macOS and other Unix systems: sysconf, getrusage and the tools ps and vm_stat."""

    source = "ps"

    def available(self) -> Available:
        """Physical memory, and the pages that are free or, on macOS, can be freed at once."""
        if sys.platform == "darwin":
            available = parse_vm_stat(_output("vm_stat"))
        else:
            available = os.sysconf("SC_AVPHYS_PAGES") * _page_bytes()
        return Available(os.sysconf("SC_PHYS_PAGES") * _page_bytes(), available)

    def process_tree(self, pid: int | None = None) -> ProcessMemory:
        """The process and its descendants among all that ps lists."""
        table, root = _process_table(), pid or os.getpid()
        held = descendants_resident_bytes(table, root)
        own = _of_one_that_runs(table.get(root, (0, 0))[1], root)
        return ProcessMemory.of(own, self.peak_resident_bytes(pid), held, self.source)

    def resident_bytes(self, pid: int | None = None) -> int:
        """Starts ps: milliseconds, not microseconds."""
        root = pid or os.getpid()
        return _of_one_that_runs(_process_table().get(root, (0, 0))[1], root)

    def peak_resident_bytes(self, pid: int | None = None) -> int:
        """getrusage's figure, which is there for this process only."""
        return _max_rss_bytes() if pid is None else 0


def descendants_resident_bytes(table: ProcessTable, process: int) -> list[int]:
    """What each child, grandchild … of `process` holds."""
    children: dict[int, list[int]] = {}
    for child, (parent, _) in table.items():
        if child != process:
            children.setdefault(parent, []).append(child)
    waiting, held = children.pop(process, []), []
    while waiting:
        child = waiting.pop()
        held.append(table[child][1])
        waiting += children.pop(child, [])  # popped: a table read while it changes may have loops
    return held


def parse_ps(text: str) -> dict[int, tuple[int, int]]:
    """The process table in lines of `pid ppid rss`, rss in KiB."""
    rows = (line.split() for line in text.splitlines())
    return {int(r[0]): (int(r[1]), int(r[2]) * _KIB) for r in rows if len(r) == 3}


def parse_vm_stat(text: str) -> int:
    """Available bytes in what macOS's vm_stat prints: free, speculative and inactive pages."""
    page_bytes = int(text.partition("page size of ")[2].split()[0])
    pairs = (line.partition(":") for line in text.splitlines())
    pages = {name.strip(): value.strip(" .") for name, _, value in pairs}
    kinds = ("Pages free", "Pages speculative", "Pages inactive")
    return page_bytes * sum(int(pages.get(kind, "0")) for kind in kinds)


def _of_one_that_runs(held_bytes: int, pid: int | None) -> int:
    """`held_bytes`. Raises ProcessLookupError for 0: who holds nothing has ended, if unburied."""
    if held_bytes == 0:
        raise ProcessLookupError(f"process {pid} has ended")
    return held_bytes


@contextmanager
def _gone_means_ended(pid: int | None) -> Iterator[None]:
    """Of a process that ends the files vanish, also while they are read."""
    try:
        yield
    except FileNotFoundError as error:
        if pid is None:
            raise
        raise ProcessLookupError(f"process {pid} has ended") from error


def _page_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE")


def _kib_fields(path: Path) -> dict[str, int]:
    """Bytes by name, from lines such as `VmRSS:  1620 kB`."""
    rows = (line.split() for line in path.read_text(encoding="utf-8").splitlines())
    return {r[0].rstrip(":"): int(r[1]) * _KIB for r in rows if len(r) == 3 and r[2] == "kB"}


def _max_rss_bytes() -> int:
    import resource  # not on Windows

    unit_bytes = 1 if sys.platform == "darwin" else _KIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes


def _process_table() -> dict[int, tuple[int, int]]:
    return parse_ps(_output("ps", "-A", "-o", "pid=,ppid=,rss="))


def _output(*command: str) -> str:
    """What a system tool prints. Raises OSError."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=_TOOL_TIMEOUT_S
        ).stdout
    except subprocess.SubprocessError as error:
        raise OSError(f"{command[0]}: {error}") from error
