"""What this process's own limits (ulimit -v, ulimit -d) leave it of memory. POSIX."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

# What a thread takes of them beside memory that is used: its stack, and in the address space the
# arena that glibc's allocator reserves for it.
_STACK_BYTES, _ARENA_BYTES = 8 << 20, 64 << 20
_STEP_BYTES = 64 << 20  # what is mapped varies a little from start to start; a plan should not


@dataclass(frozen=True, slots=True)
class ProcessLimit:
    """A limit that was set, and the memory that this process can come to use under it."""

    name: str
    reachable_bytes: int


def read_process_limit(threads: int, root: Path = Path("/")) -> ProcessLimit | None:
    """The tighter of RLIMIT_AS and RLIMIT_DATA for so many threads; None: neither is set.

    Both count what is mapped and not what is used. What this process has mapped beyond what it
    uses is therefore taken off, and so is what its threads will map.
    """
    if sys.platform == "win32":
        return None
    import resource

    unused = _read_unused(root)
    found = []
    for name, kind, unused_bytes, thread_bytes in (
        ("RLIMIT_AS", resource.RLIMIT_AS, unused.mapped_bytes, _STACK_BYTES + _ARENA_BYTES),
        ("RLIMIT_DATA", resource.RLIMIT_DATA, unused.private_bytes, _STACK_BYTES),
    ):
        limit = resource.getrlimit(kind)[0]
        if limit != resource.RLIM_INFINITY:
            reachable = max(0, limit - unused_bytes - threads * thread_bytes)
            found.append(ProcessLimit(name, reachable // _STEP_BYTES * _STEP_BYTES))
    return min(found, key=lambda limit: limit.reachable_bytes, default=None)


@dataclass(frozen=True, slots=True)
class _Unused:
    """Mapped and not in memory: of all mappings, and of those that nobody else can have."""

    mapped_bytes: int = 0
    private_bytes: int = 0


def _read_unused(root: Path) -> _Unused:
    """Linux's figures; nothing where it does not say."""
    try:
        words = (root / "proc/self/statm").read_text(encoding="ascii").split()
        mapped, resident, shared, private = (int(words[i]) for i in (0, 1, 2, 5))
    except (OSError, ValueError, IndexError):
        return _Unused()
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    return _Unused(
        page_bytes * max(0, mapped - resident),
        page_bytes * max(0, private - (resident - shared)),
    )
