"""Know a process again: by its number, which another may get later, and its start."""

from __future__ import annotations

import psutil

_CLOCK_SLACK_S = 2.0  # setting the clock moves the start times of processes


def identity_of(pid: int) -> str:
    """Return what `running_process` finds this process by."""
    return f"{pid} {psutil.Process(pid).create_time():.2f}"


def running_process(identity: str) -> int | None:
    """Return the process id of an identity; None if the process has ended."""
    pid, _, created_s = identity.partition(" ")
    try:
        process = psutil.Process(int(pid))
        is_the_same = abs(process.create_time() - float(created_s)) < _CLOCK_SLACK_S
        return process.pid if is_the_same and process.is_running() else None
    except (psutil.Error, ValueError):
        return None
