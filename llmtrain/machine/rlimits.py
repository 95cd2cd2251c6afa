"""Read this process's own limits on memory: `ulimit -v` and `ulimit -d`. POSIX.

Both limit mapped memory, not used memory. A library that does not check an allocation crashes
when one is reached: for example the C library, allocating a thread's local data.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

# Memory that a thread maps and does not use: its stack, and in the address space the arena
# that glibc's allocator reserves for it.
_STACK_BYTES, _ARENA_BYTES = 8 << 20, 64 << 20
_STEP_BYTES = 64 << 20  # mappings vary a little from start to start; a plan should not


@dataclass(frozen=True, slots=True)
class ProcessLimit:
    """A limit that is set, and the memory that this process can use under it."""

    name: str
    reachable_bytes: int


@dataclass(frozen=True, slots=True)
class MappedMemory:
    """A limit that is set, and the memory mapped now."""

    name: str  # RLIMIT_AS or RLIMIT_DATA
    limit_bytes: int
    mapped_bytes: int
    unused_bytes: int  # mapped and not in memory
    reusable_bytes: int  # of those, outside threads' stacks: freed blocks of the heap

    @property
    def used_bytes(self) -> int:
        """The mapped bytes, without those that later allocations can take from the heap."""
        return self.mapped_bytes - self.reusable_bytes


def has_process_limit() -> bool:
    """Return True if RLIMIT_AS or RLIMIT_DATA is set."""
    return bool(_read_limits())


def read_process_limit(threads: int, root: Path = Path("/")) -> ProcessLimit | None:
    """Return the tighter of RLIMIT_AS and RLIMIT_DATA for that many threads; None: neither is set.

    Memory that this process maps and does not use is subtracted, and so is the memory its threads
    will map.
    """
    mapped = {limit.name: limit for limit in read_mapped(root)}
    found = []
    for name, limit_bytes in _read_limits().items():
        thread_bytes = _STACK_BYTES + (_ARENA_BYTES if name == "RLIMIT_AS" else 0)
        unused_bytes = mapped[name].unused_bytes if name in mapped else 0
        reachable = max(0, limit_bytes - unused_bytes - threads * thread_bytes)
        found.append(ProcessLimit(name, reachable // _STEP_BYTES * _STEP_BYTES))
    return min(found, key=lambda limit: limit.reachable_bytes, default=None)


def read_mapped(root: Path = Path("/")) -> list[MappedMemory]:
    """Return each limit that is set, with the memory mapped now. Linux only."""
    if sys.platform == "win32":
        return []
    limits = _read_limits()
    if not limits:
        return []
    try:
        words = (root / "proc/self/statm").read_text(encoding="ascii").split()
        mapped, resident, shared, private = (int(words[i]) for i in (0, 1, 2, 5))
    except (OSError, ValueError, IndexError):
        return []
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    unused = {"RLIMIT_AS": mapped - resident, "RLIMIT_DATA": private - (resident - shared)}
    stacks_bytes = _STACK_BYTES * _count_threads(root)
    reusable_bytes = max(0, page_bytes * unused["RLIMIT_DATA"] - stacks_bytes)
    return [
        MappedMemory(
            name,
            limit_bytes,
            mapped_bytes=page_bytes * (mapped if name == "RLIMIT_AS" else private),
            unused_bytes=page_bytes * max(0, unused[name]),
            reusable_bytes=reusable_bytes,
        )
        for name, limit_bytes in limits.items()
    ]


def _count_threads(root: Path) -> int:
    try:
        return len(list((root / "proc/self/task").iterdir()))
    except OSError:
        return 1


def _read_limits() -> dict[str, int]:
    if sys.platform == "win32":
        return {}
    import resource

    limits = {
        "RLIMIT_AS": resource.getrlimit(resource.RLIMIT_AS)[0],
        "RLIMIT_DATA": resource.getrlimit(resource.RLIMIT_DATA)[0],
    }
    return {name: n for name, n in limits.items() if n != resource.RLIM_INFINITY}
