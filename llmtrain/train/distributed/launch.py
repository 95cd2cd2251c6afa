"""Launch several ranks on this machine, forward signals to them, and end them together."""

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
from llmtrain.train.distributed.failures import open_store, rank_environment, reported_failure
from llmtrain.train.signals import StopRequest, handled, save_signals, stop_signals

_POLL_EVERY_S = 0.1
_GRACE_S = 2.0  # for the other ranks to end after one failed; then they are killed
_RESUME = "--resume auto continues from the last checkpoint"


def launch(processes: int, arguments: Sequence[str], stop: StopRequest) -> int:
    """Run `llmtrain ARGUMENTS` as `processes` ranks until all have ended; return the exit code.

    Signals are forwarded to the ranks, which have their own process groups, so that Ctrl-C reaches
    them only once. Raises the failure of the first rank that failed, and InterruptedRunError for a
    signal before they were started.
    """
    stop.check()
    store, port = open_store()
    ranks = _Ranks(store)
    try:
        ranks.start(processes, port, arguments)
        with ranks.signals_forwarded(stop):
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
        """Start `count` ranks."""
        environment = os.environ | {LAUNCHED_VARIABLE: "1"}
        # Ignored until a rank handles them.
        with handled(dict.fromkeys(save_signals(), signal.SIG_IGN)):
            for rank in range(count):
                variables = rank_environment(rank, count, port)
                command = python_command(MAIN, *arguments)
                self._processes.append(_started(command, environment | variables))

    def wait(self) -> None:
        """Wait until all ranks have ended, or one has failed and the others had time to end."""
        until_s = None
        while None in (codes := self.codes):
            if until_s is None and any(codes):
                until_s = time.monotonic() + _GRACE_S
            if until_s is not None and time.monotonic() > until_s:
                return
            time.sleep(_POLL_EVERY_S)

    def kill(self) -> None:
        """Kill the ranks that still run, also suspended ones."""
        for rank, process in enumerate(self._processes):
            if process.poll() is None:
                self._killed.add(rank)
                process.kill()
        for process in self._processes:
            process.wait()

    @contextmanager
    def signals_forwarded(self, stop: StopRequest) -> Iterator[None]:
        """Forward signals to the ranks, including one that arrived while they were started."""
        with handled(dict.fromkeys([*stop_signals(), *save_signals()], self._forward)):
            if stop.is_made:
                self._forward(signal.SIGTERM, None)
            yield

    def _forward(self, number: int, _frame: FrameType | None) -> None:
        self._forwarded.add(number)
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(_group_signal(number))

    def failure(self) -> LlmtrainError | None:
        """Return the failure of the first rank that failed: reported, or known by its exit code."""
        if self.codes[0] in (0, InterruptedRunError.exit_code):
            return None  # trained or saved, and reported
        reports = [reported_failure(self._store, rank) for rank in range(len(self._processes))]
        reported = [error for error in reports if error is not None]
        causes = [error for error in reported if not isinstance(error, PeerLostError)]
        causes += [
            _unreported_failure(rank, code, was_forwarded=-code in self._forwarded)
            for rank, code in enumerate(self.codes)
            if code and reports[rank] is None and rank not in self._killed and (rank or code < 0)
        ]
        # A lost peer is the consequence of another failure, if there is one.
        return next(iter([*causes, *reported]), None)


def _unreported_failure(rank: int, code: int, *, was_forwarded: bool) -> LlmtrainError:
    """Return the error for a rank that ended without a report."""
    if was_forwarded:  # a rank has no handler before it starts and after it has finished
        name = signal.Signals(-code).name
        return InterruptedRunError(f"stopped by {name}", hint="--resume auto continues")
    return LlmtrainError(f"rank {rank} {describe_exit_code(code)}", hint=_RESUME)


def _started(command: Sequence[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start the command in its own process group."""
    if sys.platform == "win32":
        group = subprocess.CREATE_NEW_PROCESS_GROUP
        return subprocess.Popen(command, env=environment, creationflags=group)
    return subprocess.Popen(command, env=environment, start_new_session=True)


def _group_signal(number: int) -> int:
    """Return the signal to send to another process group; Windows has one that does not kill."""
    if sys.platform == "win32":
        return signal.CTRL_BREAK_EVENT
    return number
