"""What a memory reading is, whoever takes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from llmtrain.device.facts import AcceleratorKind


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
class ProcessMemory:
    """Resident memory of this process and all its descendants.

    Pages that several of them share are counted once for each. No system keeps a peak of a
    tree: `peak_resident_bytes` is this process's own peak since it started plus what its
    descendants hold now, so it misses what they held before.
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
    """One GPU's memory: free for anyone, and held by this process's allocator."""

    kind: AcceleratorKind
    index: int
    name: str
    total_bytes: int
    free_bytes: int | None  # None: the device did not say
    allocated_bytes: int  # in live tensors
    reserved_bytes: int  # allocated, and cached for reuse
    peak_reserved_bytes: int | None  # since the process started; None: MPS keeps no peak


@dataclass(frozen=True, slots=True)
class Available:
    """The machine's total memory, and how much of it is free for the taking."""

    total_bytes: int
    available_bytes: int
    swap_free_bytes: int = 0  # that memory can be moved to, where the reader asks for it


class MemoryReader(Protocol):
    """One way to read memory. Every method raises OSError where the system refuses."""

    @property
    def source(self) -> str:
        """What is asked, in a word."""
        ...

    def available(self) -> Available:
        """The machine's memory now."""
        ...

    def process_tree(self) -> ProcessMemory:
        """This process and its descendants now: looks at every process there is."""
        ...

    def resident_bytes(self) -> int:
        """This process alone, now."""
        ...

    def own_peak_resident_bytes(self) -> int:
        """This process alone, the most since it started."""
        ...
