"""Stopping when asked: the first signal asks, the second insists."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from llmtrain.errors import AbortedError, InterruptedRunError

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")


@dataclass(slots=True)
class StopRequest:
    """Whether a signal asked to stop."""

    signal_name: str | None = None

    @property
    def is_made(self) -> bool:
        """A signal has come."""
        return self.signal_name is not None

    def check(self) -> None:
        """Nothing, or InterruptedRunError once a signal has come: for work that can be redone."""
        if self.signal_name is not None:
            raise InterruptedRunError(
                f"stopped by {self.signal_name}", hint="the same command again starts over"
            )

    def on_signal(self, number: int, _frame: FrameType | None) -> None:
        """The first signal is noted; the second raises AbortedError where the program stands."""
        name = signal.Signals(number).name
        if self.signal_name is not None:
            raise AbortedError(
                f"aborted by a second signal ({name})",
                hint="--resume auto goes on from the last checkpoint",
            )
        self.signal_name = name


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Within the block signals that ask to stop are noted instead of killing the process.

    A signal that was ignored before (nohup) stays ignored. Outside the main thread, where
    Python has no handlers, nothing is caught.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {}
    for name in _NAMES:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            previous[number] = signal.signal(number, request.on_signal)
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def process_age_s() -> float:
    """Seconds since this process was started, imports included."""
    import time

    import psutil

    return max(0.0, time.time() - psutil.Process(os.getpid()).create_time())
