"""Measure how long this process's threads wait for a core, as Linux's scheduler counts it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

_LEAST_SHARE = 1e-6  # what is saved of a measurement is above 0

CoreTimes = Mapping[str, tuple[int, int]]  # of each thread: ns on a core, ns ready and waiting


def read_core_times(root: Path = Path("/")) -> CoreTimes:
    """Return the times of this process's threads until now; empty if they are not counted."""
    found = {}
    for path in (root / "proc" / "self" / "task").glob("*/schedstat"):
        with suppress(OSError, ValueError):  # the thread ended
            running, waiting, _ = path.read_text(encoding="ascii").split()
            found[path.parent.name] = (int(running), int(waiting))
    return found


def waited_share(before: CoreTimes, now: CoreTimes) -> float | None:
    """Return the share of their runnable time in which threads waited for a core.

    None if it is not counted.
    """
    started = {thread: before.get(thread, (0, 0)) for thread in now}
    running = sum(now[thread][0] - started[thread][0] for thread in now)
    waiting = sum(now[thread][1] - started[thread][1] for thread in now)
    return waiting / (running + waiting) if running + waiting > 0 else None


def ran_share(before: CoreTimes, now: CoreTimes) -> float:
    """Return the share of their runnable time in which threads had a core, above 0.

    1 if it is not counted.
    """
    return max(_LEAST_SHARE, 1.0 - (waited_share(before, now) or 0.0))
