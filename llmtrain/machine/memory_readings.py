"""Memory readings as plain values."""

from __future__ import annotations

from dataclasses import dataclass

from llmtrain.machine.facts import AcceleratorKind


@dataclass(frozen=True, slots=True)
class SystemMemory:
    """The machine's memory now."""

    total_bytes: int
    available_bytes: int  # can still be allocated without swapping
    used_bytes: int  # total − available
    percent: float  # used / total × 100
    limit_bytes: int | None  # of the control group, if it is below the total
    limit_used_bytes: int | None  # charged against that limit, page cache included
    source: str  # psutil, or os if psutil is missing


@dataclass(frozen=True, slots=True)
class GroupUse:
    """The memory of the limited control group that has the least left."""

    path: str
    total_bytes: int  # its limit
    available_bytes: int
    used_bytes: int  # without the page cache, which is dropped before any process is killed
    percent: float


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """Resident memory of a process and all its descendants.

    Pages that several of them share are counted once for each. No system keeps a peak of a
    process tree: `peak_resident_bytes` is the process's own peak plus what its descendants hold
    now. If the system keeps no peak of another process (macOS), it is the memory held now.
    """

    resident_bytes: int
    peak_resident_bytes: int
    processes: int
    source: str  # psutil, or resource if psutil is missing


@dataclass(frozen=True, slots=True)
class AcceleratorMemory:
    """One GPU's memory: in use by all processes, and held by this process's allocator.

    None if the device does not report it: another process's allocator is unknown.
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
        """The memory in use by all processes."""
        return None if self.available_bytes is None else self.total_bytes - self.available_bytes

    @property
    def percent(self) -> float | None:
        """The percentage in use: used / total × 100."""
        used_bytes = self.used_bytes
        return None if used_bytes is None else round(100 * used_bytes / self.total_bytes, 1)
