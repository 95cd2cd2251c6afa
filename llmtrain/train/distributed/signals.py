"""Signals: the first one stops and saves, a second one aborts, SIGUSR1 saves and continues."""

from __future__ import annotations

import _thread
import math
import os
import signal
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from llmtrain.errors import AbortedError, InterruptedRunError

STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
SAVE_SIGNAL = "SIGUSR1"
_CHECK_PARENT_EVERY_S = 1.0
_REPEAT_EVERY_S = 0.5
# timeout(1) signals the process and then its group: two equal signals this close are one request.
_ONE_REQUEST_S = 0.5


class _Interrupt(BaseException):
    """Leaves an `at_once` block; no BaseException is caught by an `except Exception`."""


@dataclass(slots=True)
class StopRequest:
    """A request by signal to stop, or to save and continue."""

    signal_name: str | None = None
    made_s: float = -math.inf  # by the monotonic clock
    interrupts: bool = False  # within `at_once`: a signal raises where the program stands
    has_interrupted: bool = False  # an `at_once` block was left; its threads may still run
    save_requested: bool = False
    is_repeated: bool = False  # the next signal was sent by `_repeat`, not by a user

    @property
    def is_made(self) -> bool:
        """True once a signal to stop has arrived."""
        return self.signal_name is not None

    def check(self) -> None:
        """Raise InterruptedRunError if a signal to stop has arrived."""
        if self.signal_name is not None:
            raise InterruptedRunError(
                f"stopped by {self.signal_name}", hint="run the same command again"
            )

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Let a signal interrupt the block wherever it stands. Raises InterruptedRunError.

        For work that can be repeated and never calls `check`, such as compiling.
        """
        self.check()
        try:
            try:
                self.interrupts = True
                yield
            finally:
                self.interrupts = False
        except _Interrupt:
            self.has_interrupted = True
            self.check()

    def finish(self) -> None:
        """Let the rest of the current `at_once` block finish before a signal takes effect."""
        self.interrupts = False

    def take_save(self) -> bool:
        """Return True if a save was requested since the last call."""
        requested, self.save_requested = self.save_requested, False
        return requested

    def on_signal(self, number: int, _frame: FrameType | None) -> None:
        """Record the first signal; raise AbortedError on the second, wherever the program is."""
        name = signal.Signals(number).name
        if self.is_repeated:
            self.is_repeated = False
        elif name == self.signal_name and time.monotonic() - self.made_s < _ONE_REQUEST_S:
            return
        elif self.signal_name is not None:
            raise AbortedError(
                f"aborted by a second signal ({name})",
                hint="--resume auto continues from the last checkpoint",
            )
        elif self.interrupts:
            threading.Thread(target=self._repeat, args=(number,), daemon=True).start()
        if self.signal_name is None:
            self.signal_name, self.made_s = name, time.monotonic()
        if self.interrupts:
            raise _Interrupt

    def _repeat(self, number: int) -> None:
        """Send the signal again until the block is left: a callback may swallow the exception."""
        while self.interrupts:
            time.sleep(_REPEAT_EVERY_S)
            if self.interrupts:
                self.is_repeated = True
                _signal_main_thread(number)

    def on_save_signal(self, _number: int, _frame: FrameType | None) -> None:
        """Request a checkpoint after the current step."""
        self.save_requested = True


def _signal_main_thread(number: int) -> None:
    """Deliver the signal to the main thread, even inside a blocking system call.

    Windows cannot interrupt such a call: there the signal arrives when the call returns.
    """
    if hasattr(signal, "pthread_kill"):
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, number)
    else:
        _thread.interrupt_main(signal.Signals(number))


@contextmanager
def stop_on_signals(always: Collection[str] = ()) -> Iterator[StopRequest]:
    """Turn signals to stop or to save into a request within the block.

    A signal that was ignored when the process started (nohup, a script's background job) stays
    ignored, unless `always` names it. Outside the main thread, where Python allows no handlers,
    no signal is caught.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {n: signal.signal(n, request.on_signal) for n in stop_signals(always)}
    previous |= {n: signal.signal(n, request.on_save_signal) for n in save_signals()}
    try:
        yield request
    finally:
        for number, before in previous.items():
            signal.signal(number, before if before is not None else signal.SIG_DFL)


def stop_signals(always: Collection[str] = ()) -> list[int]:
    """Return the signals to stop that this system has, without ignored ones not in `always`."""
    numbers = {name: getattr(signal, name) for name in STOP_SIGNALS if hasattr(signal, name)}
    return [
        number
        for name, number in numbers.items()
        if name in always or signal.getsignal(number) is not signal.SIG_IGN
    ]


def save_signals() -> list[int]:
    """Return the signal that requests a save, if this system has it."""
    return [getattr(signal, SAVE_SIGNAL)] if hasattr(signal, SAVE_SIGNAL) else []


def stop_with_parent(request: StopRequest) -> None:
    """Request a stop within a second after the parent process has ended.

    Otherwise the ranks of a killed launcher would train on, out of reach of its signals.
    """
    import psutil

    parent_pid = os.getppid()
    parent = psutil.Process(parent_pid)

    def watch() -> None:
        # POSIX gives an orphan another parent; Windows does not, so the parent is polled.
        while os.getppid() == parent_pid and parent.is_running():
            time.sleep(_CHECK_PARENT_EVERY_S)
        if request.signal_name is None:
            request.signal_name = "the end of its launcher"

    threading.Thread(target=watch, name="parent watch", daemon=True).start()


def process_age_s() -> float:
    """Return the seconds since this process was started, imports included."""
    import psutil

    return max(0.0, time.time() - psutil.Process(os.getpid()).create_time())
