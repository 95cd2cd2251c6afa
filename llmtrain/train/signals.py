"""Stop and save on signals, in one process or several.

The first stop signal requests a stop after the current step; the second aborts.
"""

from __future__ import annotations

import _thread
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from llmtrain.errors import AbortedError, InterruptedRunError
from llmtrain.interrupts import is_importing

Handler = Callable[[int, FrameType | None], None] | signal.Handlers

STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
SAVE_SIGNAL = "SIGUSR1"
_CHECK_PARENT_EVERY_S = 1.0
_REPEAT_EVERY_S = 0.5
# timeout(1) signals the process and then its whole group; both signals are one request.
_ONE_REQUEST_S = 0.5


class _Abandoned(BaseException):
    """Leaves an `immediate` block; a BaseException, so that `except Exception` lets it pass."""


@dataclass(slots=True)
class StopRequest:
    """A request by signal to stop, or to save and continue."""

    signal_name: str | None = None
    made_s: float = -math.inf  # when, by the monotonic clock
    is_immediate: bool = False  # the current work can be repeated: a signal ends it immediately
    has_abandoned_work: bool = False  # it was ended; its other threads may still be running
    save_requested: bool = False
    is_repeated: bool = False  # the next signal is the first one, sent again by `_repeat`

    @property
    def is_made(self) -> bool:
        """True if a stop signal has arrived."""
        return self.signal_name is not None

    def check(self) -> None:
        """Raise InterruptedRunError after a stop signal, in work that can be repeated."""
        if self.signal_name is not None:
            raise InterruptedRunError(
                f"stopped by {self.signal_name}", hint="run the same command again"
            )

    @contextmanager
    def immediate(self) -> Iterator[None]:
        """Within the block, let a stop signal raise InterruptedRunError at any point.

        For work that can be repeated and cannot call `check`.
        """
        self.check()
        try:
            try:
                self.is_immediate = True
                yield
            finally:
                self.is_immediate = False
        except _Abandoned:
            self.has_abandoned_work = True
            self.check()

    def defer(self) -> None:
        """From here on in an `immediate` block, let a stop signal wait for the block's end."""
        self.is_immediate = False

    def take_save_request(self) -> bool:
        """Return whether a save was requested since the last call."""
        requested, self.save_requested = self.save_requested, False
        return requested

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Note the first signal; raise AbortedError on the second.

        Nothing is raised where a module is imported, which may swallow it or abort the process:
        there the first signal is repeated later, and the second one ends the process.
        """
        name = signal.Signals(number).name
        if self.is_repeated:
            self.is_repeated = False
        elif name == self.signal_name and time.monotonic() - self.made_s < _ONE_REQUEST_S:
            return
        elif self.signal_name is not None:
            if is_importing(frame):
                os._exit(AbortedError.exit_code)
            raise AbortedError(
                f"aborted by a second signal ({name})",
                hint="--resume auto continues from the last checkpoint",
            )
        elif self.is_immediate:
            threading.Thread(target=self._repeat, args=(number,), daemon=True).start()
        if self.signal_name is None:
            self.signal_name, self.made_s = name, time.monotonic()
        if self.is_immediate and not is_importing(frame):
            raise _Abandoned

    def _repeat(self, number: int) -> None:
        """Repeat the signal until the block is left: exceptions in some callbacks are swallowed."""
        while self.is_immediate:
            time.sleep(_REPEAT_EVERY_S)
            if self.is_immediate:
                self.is_repeated = True
                _signal_main_thread(number)

    def on_save_signal(self, _number: int, _frame: FrameType | None) -> None:
        """Request a save after the next step."""
        self.save_requested = True


def _signal_main_thread(number: int) -> None:
    """Send the main thread a signal that also interrupts a system call.

    Windows has no such call: there the signal arrives after it.
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
    handlers: dict[int, Handler] = dict.fromkeys(stop_signals(always), request.on_signal)
    with handled(handlers | dict.fromkeys(save_signals(), request.on_save_signal)):
        yield request


@contextmanager
def handled(handlers: Mapping[int, Handler]) -> Iterator[None]:
    """Within the block, handle these signals so."""
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
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
    """Make the stop request within a second of the end of the parent process.

    Nobody can stop ranks through a launcher that was killed.
    """
    import psutil

    parent_pid = os.getppid()
    parent = psutil.Process(parent_pid)

    def watch() -> None:
        # POSIX gives an orphan another parent; on Windows the parent itself has to be checked.
        while os.getppid() == parent_pid and parent.is_running():
            time.sleep(_CHECK_PARENT_EVERY_S)
        if request.signal_name is None:
            request.signal_name = "the end of the launcher"

    threading.Thread(target=watch, name="parent watch", daemon=True).start()
