"""Stopping and saving when asked: the first signal to stop asks, the second insists."""

from __future__ import annotations

import _thread
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from llmtrain.errors import AbortedError, InterruptedRunError

STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
SAVE_SIGNAL = "SIGUSR1"
_LOOK_FOR_PARENT_EVERY_S = 1.0
_INSIST_EVERY_S = 0.5
# timeout(1) signals the process and then its whole group, so that both arrive: that is one request.
_ONE_REQUEST_S = 0.5


class _GivenUp(BaseException):
    """What was under way is left where it stands; no `except Exception` on the way holds it."""


@dataclass(slots=True)
class StopRequest:
    """Whether a signal asked to stop, or to save and go on."""

    signal_name: str | None = None
    made_s: float = -math.inf  # by the monotonic clock
    gives_up: bool = False  # what is under way can be redone: the first signal ends it at once
    has_given_up: bool = False  # something that others may still be at, in threads of theirs
    save_is_asked: bool = False
    is_insisting: bool = False

    @property
    def is_made(self) -> bool:
        """A signal to stop has come."""
        return self.signal_name is not None

    def check(self) -> None:
        """Nothing, or InterruptedRunError once a signal has come: for work that can be redone."""
        if self.signal_name is not None:
            raise InterruptedRunError(
                f"stopped by {self.signal_name}", hint="run the same command again"
            )

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within the block a signal does not wait for a check. Raises InterruptedRunError.

        For work that can be redone and that has no places to check: it ends where it stands.
        """
        self.check()
        try:
            try:
                self.gives_up = True
                yield
            finally:
                self.gives_up = False
        except _GivenUp:
            self.has_given_up = True
            self.check()

    def finish(self) -> None:
        """What is under way in an `at_once` can no longer be left: it is finished first."""
        self.gives_up = False

    def take_save(self) -> bool:
        """Whether a save was asked for since the last call."""
        asked, self.save_is_asked = self.save_is_asked, False
        return asked

    def on_signal(self, number: int, _frame: FrameType | None) -> None:
        """The first signal is noted; the second raises AbortedError where the program stands."""
        name = signal.Signals(number).name
        if self.is_insisting:
            self.is_insisting = False
        elif name == self.signal_name and time.monotonic() - self.made_s < _ONE_REQUEST_S:
            return
        elif self.signal_name is not None:
            raise AbortedError(
                f"aborted by a second signal ({name})",
                hint="--resume auto goes on from the last checkpoint",
            )
        elif self.gives_up:
            threading.Thread(target=self._insist, args=(number,), daemon=True).start()
        if self.signal_name is None:
            self.signal_name, self.made_s = name, time.monotonic()
        if self.gives_up:
            raise _GivenUp

    def _insist(self, number: int) -> None:
        """What was to be given up is: an exception is lost where it strikes in a callback."""
        while self.gives_up:
            time.sleep(_INSIST_EVERY_S)
            if self.gives_up:
                self.is_insisting = True
                _signal_main_thread(number)

    def on_save_signal(self, _number: int, _frame: FrameType | None) -> None:
        """The next step is saved."""
        self.save_is_asked = True


def _signal_main_thread(number: int) -> None:
    """The main thread gets the signal, also where it waits for something in the system.

    Windows has no such call: there it gets it when the wait is over.
    """
    if hasattr(signal, "pthread_kill"):
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, number)
    else:
        _thread.interrupt_main(signal.Signals(number))


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Within the block signals that ask to stop or to save are noted and kill nothing.

    A signal to stop that was ignored before (nohup) stays ignored. Outside the main thread, where
    Python has no handlers, nothing is caught.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {n: signal.signal(n, request.on_signal) for n in stop_signals()}
    previous |= {n: signal.signal(n, request.on_save_signal) for n in save_signals()}
    try:
        yield request
    finally:
        for number, before in previous.items():
            signal.signal(number, before if before is not None else signal.SIG_DFL)


def stop_signals() -> list[int]:
    """Those that this system has and that are not ignored."""
    numbers = [getattr(signal, name) for name in STOP_SIGNALS if hasattr(signal, name)]
    return [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]


def save_signals() -> list[int]:
    """The one that asks to save, where this system has it."""
    return [getattr(signal, SAVE_SIGNAL)] if hasattr(signal, SAVE_SIGNAL) else []


def stop_with_parent(request: StopRequest) -> None:
    """The request is made within a second of the end of the process that started this one.

    A launcher that was killed leaves ranks that nobody can stop any more through it.
    """
    import psutil

    parent_pid = os.getppid()
    parent = psutil.Process(parent_pid)

    def watch() -> None:
        # POSIX gives an orphan another parent; on Windows the parent's end has to be looked for.
        while os.getppid() == parent_pid and parent.is_running():
            time.sleep(_LOOK_FOR_PARENT_EVERY_S)
        if request.signal_name is None:
            request.signal_name = "the end of its launcher"

    threading.Thread(target=watch, name="parent watch", daemon=True).start()


def process_age_s() -> float:
    """Seconds since this process was started, imports included."""
    import psutil

    return max(0.0, time.time() - psutil.Process(os.getpid()).create_time())
