"""A command run in a process of its own, with its peak memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

# Where the kernel tells a process's peak, looking only serves to add up the processes of a tree.
_LOOK_EVERY_S = 1.0 if os.name == "posix" else 0.05
_TAIL_LINES = 15


@dataclass(frozen=True, slots=True)
class Finished:
    """What became of a command.

    `peak_process_bytes` is the largest process's peak as the kernel knows it, `peak_tree_bytes`
    that or the most that all of them held together when looked at, which counts compilers too.
    Linux begins to count with what the process that started it held: that one has to be small.
    """

    exit_code: int
    wall_s: float
    peak_process_bytes: int
    peak_tree_bytes: int


def run_measured(
    command: Sequence[str], environment: Mapping[str, str], log: Path, directory: Path
) -> Finished:
    """The command, run in `directory`, has ended, and what it wrote is in `log`."""
    begun_s = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            cwd=directory,
            start_new_session=True,
        )
        watch = TreeWatch(process.pid)
        with _ended_with_us(process), watch.looking():
            peak_process_bytes = _wait(process)
    return Finished(
        exit_code=process.returncode,
        wall_s=time.monotonic() - begun_s,
        peak_process_bytes=peak_process_bytes or watch.peak_bytes,
        peak_tree_bytes=max(peak_process_bytes, watch.peak_bytes),
    )


def tail(log: Path) -> str:
    """The last lines of what a command wrote."""
    text = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n")
    lines = [line for line in text.splitlines() if line.strip()]
    return "\n".join(lines[-_TAIL_LINES:])


class TreeWatch:
    """Adds up, now and then, what a process and its descendants hold."""

    def __init__(self, pid: int) -> None:
        self.peak_bytes = 0
        self._pid = pid
        self._over = threading.Event()

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Looks for as long as the block lasts."""
        thread = threading.Thread(target=self._look_on, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _look_on(self) -> None:
        while not self._over.wait(_LOOK_EVERY_S):
            self.peak_bytes = max(self.peak_bytes, self._held_bytes())

    def _held_bytes(self) -> int:
        try:
            root = psutil.Process(self._pid)
            members = [root, *root.children(recursive=True)]
        except psutil.Error:
            return 0
        held = [(_resident_bytes(member), member) for member in members]
        largest_bytes, largest = max(held, key=lambda pair: pair[0])
        return largest_bytes + sum(_share_bytes(each) for each in members if each is not largest)


def _resident_bytes(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.Error:
        return 0  # it ended meanwhile


def _share_bytes(process: psutil.Process) -> int:
    """What the process holds, a page that others hold as well by its share where that is known.

    Asking walks all its pages: not for the largest one, which is the one that trains.
    """
    try:
        held = process.memory_full_info()
    except psutil.Error:
        return 0
    return int(held.pss if sys.platform == "linux" else held.rss)


def _wait(process: subprocess.Popen[bytes]) -> int:
    """The process has ended; the kernel's peak of it and those it waited for, 0 if not known."""
    if sys.platform == "win32":
        process.wait()
        return 0
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@contextmanager
def _ended_with_us(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """If we are interrupted, so is the whole tree."""
    try:
        yield
    except BaseException:
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
