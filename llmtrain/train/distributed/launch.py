"""Several processes on this machine: started, watched, and ended together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from torch.distributed.distributed_c10d import Store

from llmtrain.children import MAIN, python_command
from llmtrain.errors import (
    InterruptedRunError,
    LlmtrainError,
    PeerLostError,
    describe_exit_code,
)
from llmtrain.files import LAUNCHED_VARIABLE
from llmtrain.train.distributed.failures import open_store, place_of, reported_failure
from llmtrain.train.distributed.signals import StopRequest, save_signals, stop_signals

_LOOK_EVERY_S = 0.1
_LAST_WORDS_S = 2.0  # after one rank failed, for the others to notice; then they are killed
_GO_ON = "--resume auto goes on from the last checkpoint"


def launch(processes: int, arguments: Sequence[str], stop: StopRequest) -> int:
    """The exit code of `llmtrain ARGUMENTS` run as so many ranks, all of which are gone.

    Signals are handed on to the ranks, which are in process groups of their own, so that a Ctrl-C
    reaches them only once: through here. Raises what made the first rank fail, and
    InterruptedRunError for a signal that came before they were started.
    """
    stop.check()
    store, port = open_store()
    ranks = _Ranks(store)
    try:
        ranks.start(processes, port, arguments)
        with ranks.signalled(stop):
            ranks.wait()
    finally:
        ranks.kill()
    failure = ranks.failure()
    if failure is not None:
        raise failure
    return ranks.codes[0] or 0


class _Ranks:
    """The started processes, by rank."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._processes: list[subprocess.Popen[bytes]] = []
        self._forwarded: set[int] = set()
        self._killed: set[int] = set()

    @property
    def codes(self) -> list[int | None]:
        """Each rank's exit code; None while it runs."""
        return [process.poll() for process in self._processes]

    def start(self, count: int, port: int, arguments: Sequence[str]) -> None:
        """So many ranks run."""
        environment = os.environ | {LAUNCHED_VARIABLE: "1"}
        with _unready_for(save_signals()):
            for rank in range(count):
                place = place_of(rank, count, port)
                command = python_command(MAIN, *arguments)
                self._processes.append(_started(command, environment | place))

    def wait(self) -> None:
        """All have ended, or one has failed and the others had time to end."""
        until_s = None
        while None in (codes := self.codes):
            if until_s is None and any(codes):
                until_s = time.monotonic() + _LAST_WORDS_S
            if until_s is not None and time.monotonic() > until_s:
                return
            time.sleep(_LOOK_EVERY_S)

    def kill(self) -> None:
        """None runs any more, suspended ones neither."""
        for rank, process in enumerate(self._processes):
            if process.poll() is None:
                self._killed.add(rank)
                process.kill()
        for process in self._processes:
            process.wait()

    @contextmanager
    def signalled(self, stop: StopRequest) -> Iterator[None]:
        """Signals go to the ranks; one that came while they were started, too."""
        numbers = [*stop_signals(), *save_signals()]
        previous = {number: signal.signal(number, self._forward) for number in numbers}
        try:
            if stop.is_made:
                self._forward(signal.SIGTERM, None)
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _forward(self, number: int, _frame: FrameType | None) -> None:
        self._forwarded.add(number)
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(_sent_as(number))

    def failure(self) -> LlmtrainError | None:
        """Why the first rank failed: as it told, or as its end tells. None where none failed."""
        if self.codes[0] in (0, InterruptedRunError.exit_code):
            return None  # all is trained, or saved, and told
        told = [reported_failure(self._store, rank) for rank in range(len(self._processes))]
        found = [error for error in told if error is not None]
        causes = [error for error in found if not isinstance(error, PeerLostError)]
        causes += [
            _unspoken(rank, code, was_forwarded=-code in self._forwarded)
            for rank, code in enumerate(self.codes)
            if code and told[rank] is None and rank not in self._killed and (rank or code < 0)
        ]
        # That others were lost is the consequence of another failure, where there is one.
        return next(iter([*causes, *found]), None)


def _unspoken(rank: int, code: int, *, was_forwarded: bool) -> LlmtrainError:
    """What to tell of a rank that ended without a word."""
    if was_forwarded:  # it has no handler before it begins and after it is done
        name = signal.Signals(-code).name
        return InterruptedRunError(f"stopped by {name}", hint="--resume auto goes on")
    return LlmtrainError(f"rank {rank} {describe_exit_code(code)}", hint=_GO_ON)


def _started(command: Sequence[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """The command runs in a process group of its own."""
    if sys.platform == "win32":
        group = subprocess.CREATE_NEW_PROCESS_GROUP
        return subprocess.Popen(command, env=environment, creationflags=group)
    return subprocess.Popen(command, env=environment, start_new_session=True)


def _sent_as(number: int) -> int:
    """The signal that reaches another process group; Windows has one that does not kill."""
    if sys.platform == "win32":
        return signal.CTRL_BREAK_EVENT
    return number


@contextmanager
def _unready_for(numbers: Sequence[int]) -> Iterator[None]:
    """Processes that begin within the block ignore these signals until they handle them."""
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
