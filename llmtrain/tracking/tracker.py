"""The side of a tracker that trains: a bounded queue, and a process that logs.

The tracker's library runs in a process of its own: whatever it does there, hangs, fails, prints or
fills a disk, training goes on. Lines that do not fit the queue are dropped and counted.
"""

from __future__ import annotations

import json
import queue
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from llmtrain.children import python_command, start_process
from llmtrain.errors import UsageError
from llmtrain.files import Closing
from llmtrain.profile.schema import TrackerName
from llmtrain.progress import Note

_WORKER = "llmtrain.tracking.worker:main"
_QUEUED_LINES = 10_000
_CLOSE_S = 20.0  # for what is queued at the end
_LIBRARIES: dict[TrackerName, str] = {"tensorboard": "tensorboard", "trackio": "trackio"}
Line = Mapping[str, Any]


def require_trackers(names: Sequence[TrackerName]) -> None:
    """Raise UsageError unless the library of each tracker is installed."""
    import importlib.util

    for name in names:
        if importlib.util.find_spec(_LIBRARIES[name]) is None:
            raise UsageError(
                f"--log-to {name}: {_LIBRARIES[name]} is not installed",
                hint=f"pip install 'llmtrain[{name}]'",
            )


class Tracker(Closing):
    """A tracker of one run. `send` never waits and never raises."""

    def __init__(
        self,
        name: TrackerName,
        run: Path,
        notify: Callable[[Note], None],
        *,
        command: Sequence[str] | None = None,
    ) -> None:
        """Start the process that logs. `command`: it, if it is not the tracker's own."""
        self._name = name
        self._notify = notify
        self._lines: queue.Queue[Line | None] = queue.Queue(_QUEUED_LINES)
        self._last_words: deque[str] = deque(maxlen=20)
        self._dropped = 0
        self._is_announced = False
        self._process = start_process(
            list(command or python_command(_WORKER, name, str(run.absolute()))),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        self._threads = [
            threading.Thread(target=run_in_thread, daemon=True)
            for run_in_thread in (self._write, self._read_errors)
        ]
        for thread in self._threads:
            thread.start()

    def send(self, line: Line) -> None:
        """Queue a line for the tracker; drop it if the queue is full. Warn once of a failure."""
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._dropped += 1
        if self._process.poll() is not None:
            self._announce_failure()

    def close(self) -> None:
        """Wait up to 20 seconds until everything is logged, and end the process."""
        with suppress(queue.Full):
            self._lines.put_nowait(None)
        self._threads[0].join(_CLOSE_S)
        try:
            self._process.wait(_CLOSE_S if not self._threads[0].is_alive() else 0.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for thread in self._threads:
            thread.join(_CLOSE_S)
        if self._process.returncode != 0:
            self._announce_failure()
        if self._dropped:
            self._notify(
                Note(
                    f"{self._name}: {self._dropped} lines were dropped; metrics.jsonl has them",
                    is_warning=True,
                )
            )
        for pipe in (self._process.stdin, self._process.stderr):
            if pipe is not None:
                with suppress(OSError):  # of a buffer that cannot be flushed any more
                    pipe.close()

    def _write(self) -> None:
        """Write queued lines to the process until the last one, or until it is gone."""
        assert self._process.stdin is not None
        with suppress(OSError):
            while (line := self._lines.get()) is not None:
                self._process.stdin.write(json.dumps(line).encode() + b"\n")
                if self._lines.empty():
                    self._process.stdin.flush()
        with suppress(OSError):
            self._process.stdin.close()

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        with suppress(OSError, ValueError):  # closed at the end
            for line in self._process.stderr:
                self._last_words.append(line.decode(errors="replace").strip())

    def _announce_failure(self) -> None:
        if self._is_announced:
            return
        self._is_announced = True
        said = next((words for words in reversed(self._last_words) if words), "")
        self._notify(
            Note(
                f"{self._name} stopped logging{': ' if said else ''}{said[:300]}; the run goes on, "
                "and metrics.jsonl has everything",
                is_warning=True,
            )
        )
