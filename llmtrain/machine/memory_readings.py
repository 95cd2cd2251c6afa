"""What a memory reading is, whoever takes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from llmtrain.machine.facts import AcceleratorKind


@dataclass(frozen=True, slots=True)
class SystemMemory:
    """The machine's memory now."""

    total_bytes: int
    available_bytes: int  # what programs can still get without swapping
    used_bytes: int  # total − available
    percent: float  # used / total × 100
    limit_bytes: int | None  # of the control group, where it is below the total
    limit_used_bytes: int | None  # charged against that limit, page cache included
    source: str  # psutil, /proc …


@dataclass(frozen=True, slots=True)
class GroupUse:
    """The memory of the limited control group that has the least left."""

    path: str
    total_bytes: int  # its limit
    available_bytes: int
    used_bytes: int  # without the page cache, which is given up before anything is killed
    percent: float


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """Resident memory of a process and all its descendants.

    Pages that several of them share are counted once for each. No system keeps a peak of a
    tree: `peak_resident_bytes` is the process's own peak since it started plus what its
    descendants hold now, so it misses what they held before. Where the system keeps no peak of
    another process (macOS), it is what is held now.
    """

    resident_bytes: int
    peak_resident_bytes: int
    processes: int
    source: str

    @classmethod
    def of(cls, own: int, own_peak: int, descendants: Sequence[int], source: str) -> ProcessMemory:
        """The tree of a process that holds `own` bytes, and of what each descendant holds."""
        others = sum(descendants)
        # The kernel updates its high-water mark lazily: it can be behind what is held now.
        return cls(own + others, max(own, own_peak) + others, 1 + len(descendants), source)


@dataclass(frozen=True, slots=True)
class AcceleratorMemory:
    """One GPU's memory: what there is for anyone, and what this process's allocator holds.

    None where the device does not say: what another process's allocator holds is unknown.
    """

    kind: AcceleratorKind
    index: int
    name: str
    total_bytes: int
    available_bytes: int | None
    allocated_bytes: int | None = None  # in live tensors
    reserved_bytes: int | None = None  # allocated, and cached for reuse
    peak_reserved_bytes: int | None = None  # since the process started; MPS keeps no peak

    @property
    def used_bytes(self) -> int | None:
        """By all processes together."""
        return None if self.available_bytes is None else self.total_bytes - self.available_bytes

    @property
    def percent(self) -> float | None:
        """Used / total × 100."""
        used_bytes = self.used_bytes
        return None if used_bytes is None else round(100 * used_bytes / self.total_bytes, 1)


@dataclass(frozen=True, slots=True)
class Available:
    """The machine's total memory, and how much of it is free for the taking."""

    total_bytes: int
    available_bytes: int
    swap_free_bytes: int = 0  # that memory can be moved to, where the reader asks for it


class MemoryReader(Protocol):
    """One way to read memory. Every method raises OSError where the system refuses.

    A process is this one, or the one whose `pid` is given. Raises ProcessLookupError where that
    has ended.
    """

    @property
    def source(self) -> str:
        """What is asked, in a word."""
        ...

    def available(self) -> Available:
        """The machine's memory now."""
        ...

    def process_tree(self, pid: int | None = None) -> ProcessMemory:
        """The process and its descendants now: looks at every process there is."""
        ...

    def resident_bytes(self, pid: int | None = None) -> int:
        """The process alone, now."""
        ...

    def peak_resident_bytes(self, pid: int | None = None) -> int:
        """The process alone, the most since it started; 0 where the system does not say."""
        ...
