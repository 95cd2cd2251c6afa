"""Read the limits of this process's Linux control group: a container, a slice, a batch job.

Version 1, version 2 and the two mounted together. The file system's root is an argument, so that
tests can construct one. Missing, unreadable or malformed values are unknown: `None`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

# Version 1 writes "no limit" as the largest multiple of the page size below 2**63.
_UNLIMITED_BYTES = 1 << 60


@dataclass(frozen=True, slots=True)
class CgroupLimits:
    """The smallest limits of this process's group and all groups above it; None: no limit known."""

    quota_cores: float | None
    memory_limit_bytes: int | None


@dataclass(frozen=True, slots=True)
class GroupMemory:
    """The memory of a limited group.

    `used_bytes` is without the page cache and other kernel caches, which are dropped before any
    process is killed. `swap_bytes` may still be moved out; None: as much as the machine allows.
    """

    path: Path
    limit_bytes: int
    used_bytes: int
    swap_bytes: int | None


def read_limits(root: Path = Path("/")) -> CgroupLimits:
    """Return the limits on this process. Both None where there are no control groups."""
    quotas = [_quota_cores(group) for group in _groups(root, "cpu")]
    limits = [_memory_limit_bytes(group) for group in _groups(root, "memory")]
    return CgroupLimits(
        min((quota for quota in quotas if quota is not None), default=None),
        min((limit for limit in limits if limit is not None), default=None),
    )


def read_memory_usage(root: Path = Path("/")) -> int | None:
    """Return the bytes charged to the group with the smallest limit, or to this process's own.

    The page cache is charged too, so that a group that reads files is near its limit without
    being short of memory.
    """
    groups = _groups(root, "memory")
    limited = [(limit, group) for group in groups if (limit := _memory_limit_bytes(group))]
    if limited:
        return _usage_bytes(min(limited, key=lambda pair: pair[0])[1])
    return next((usage for group in groups if (usage := _usage_bytes(group))), None)


def read_limited_groups(root: Path = Path("/"), pid: int | None = None) -> list[GroupMemory]:
    """Return every limited group that this process, or `pid`, is charged to; its own first."""
    found = []
    for group in _groups(root, "memory", "self" if pid is None else str(pid)):
        limit, usage = _memory_limit_bytes(group), _usage_bytes(group)
        if limit is not None and usage is not None:
            used = max(0, usage - _reclaimable_bytes(group))
            swap = _swap_room_bytes(group, limit, usage)
            found.append(GroupMemory(group, limit, used, swap))
    return found


def _reclaimable_bytes(group: Path) -> int:
    """Return the bytes of the page cache and of reclaimable kernel objects.

    Version 1 has the sums over the groups below under separate names.
    """
    rows = (line.split() for line in _text(group / "memory.stat").splitlines())
    stat = {row[0]: _positive(row[1]) or 0 for row in rows if len(row) == 2}
    names = ("inactive_file", "active_file", "slab_reclaimable")
    return sum(stat.get(f"total_{name}", stat.get(name, 0)) for name in names)


def _swap_room_bytes(group: Path, limit_bytes: int, usage_bytes: int) -> int | None:
    """Return what the group may still move to swap."""
    if _text(group / "memory.max"):
        allowed, taken = group / "memory.swap.max", group / "memory.swap.current"
        room = _number(_text(allowed))
        return None if room is None else max(0, room - (_number(_text(taken)) or 0))
    together = _positive(_text(group / "memory.memsw.limit_in_bytes"))
    if together is None or together >= _UNLIMITED_BYTES:
        return None
    swapped = (_positive(_text(group / "memory.memsw.usage_in_bytes")) or 0) - usage_bytes
    return max(0, together - limit_bytes - max(0, swapped))


def _groups(root: Path, controller: str, process: str = "self") -> list[Path]:
    """Return a process's group and those above it, nearest first, for `controller`."""
    base = root / "sys/fs/cgroup"
    groups: list[Path] = []
    for line in _text(root / "proc" / process / "cgroup").splitlines():
        names, _, path = line.partition(":")[2].partition(":")
        if names == "":  # version 2, alone or beside version 1
            mounts = [base, base / "unified"]
        elif controller in names.split(","):
            mounts = [base / names, base / controller]
        else:
            continue
        for mount in mounts:
            groups += _levels(mount, PurePosixPath(path))
    return list(dict.fromkeys(groups))


def _levels(mount: Path, path: PurePosixPath) -> list[Path]:
    """Return the directories from `path` up to `mount`.

    Inside a container the path may be the host's: then the mount's root is the group, and a
    directory that matches the beginning of the path is another group's.
    """
    parts = path.parts[1:]
    if ".." in parts or not mount.joinpath(*parts).is_dir():
        parts = ()
    return [mount.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]


def _quota_cores(group: Path) -> float | None:
    words = _text(group / "cpu.max").split() or [
        *_text(group / "cpu.cfs_quota_us").split(),
        *_text(group / "cpu.cfs_period_us").split(),
    ]
    if len(words) != 2:
        return None
    quota_us, period_us = (_positive(word) for word in words)
    return quota_us / period_us if quota_us and period_us else None


def _memory_limit_bytes(group: Path) -> int | None:
    limit = _positive(_text(group / "memory.max") or _text(group / "memory.limit_in_bytes"))
    return limit if limit is not None and limit < _UNLIMITED_BYTES else None


def _usage_bytes(group: Path) -> int | None:
    return _positive(_text(group / "memory.current") or _text(group / "memory.usage_in_bytes"))


def _positive(text: str) -> int | None:
    """Return the positive integer in `text`; None for `max`, `-1` and anything else."""
    number = _number(text)
    return number if number is not None and number > 0 else None


def _number(text: str) -> int | None:
    """Return the integer in `text`; None for `max` and anything else."""
    try:
        return int(text)
    except ValueError:
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
