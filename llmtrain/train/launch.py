"""Several processes on this machine, started through torchrun's agent."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

import psutil
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from llmtrain.errors import InterruptedRunError, LlmtrainError
from llmtrain.files import OUTCOME_FILE_VARIABLE
from llmtrain.train.signals import StopRequest


def launch(processes: int, arguments: Sequence[str], stop: StopRequest, *, debug: bool) -> int:
    """Runs `llmtrain ARGUMENTS` as so many ranks; returns the exit code that rank 0 recorded.

    The ranks are in process groups of their own, so that a Ctrl-C reaches them only once:
    through here. Raises InterruptedRunError for a signal that came before they were started.
    """
    stop.check()
    if not debug:
        logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="llmtrain-") as directory:
        outcome = Path(directory) / "outcome"
        os.environ[OUTCOME_FILE_VARIABLE] = str(outcome)
        if sys.platform == "win32":
            os.environ.setdefault("USE_LIBUV", "0")  # Windows wheels are built without it
        forward = _forwarding(stop)
        previous = {number: signal.signal(number, forward) for number in _forwarded()}
        try:
            agent = elastic_launch(_config(processes, directory), sys.executable)
            agent("-m", "llmtrain", *arguments)
        except ChildFailedError as error:
            if not outcome.exists():
                raise _unspoken(error) from error
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        return int(outcome.read_text(encoding="ascii"))


def _unspoken(error: ChildFailedError) -> LlmtrainError:
    """What to tell where rank 0 ended without a word."""
    rank, failure = error.get_first_failure()
    exit_code = int(failure.exitcode)
    if -exit_code in _forwarded():  # it has no handler before it begins and after it is done
        name = signal.Signals(-exit_code).name
        return InterruptedRunError(f"stopped by {name}", hint="--resume auto goes on")
    how = f"was killed by signal {-exit_code}" if exit_code < 0 else f"ended with code {exit_code}"
    hint = "--resume auto goes on from the last checkpoint"
    return LlmtrainError(f"rank {rank} {how}", hint=hint)


def _config(processes: int, log_directory: str) -> LaunchConfig:
    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.2,
        logs_specs=DefaultLogsSpecs(log_dir=log_directory),  # its default is never removed
        signals_to_handle="SIGQUIT",  # the agent kills everything; the others are forwarded here
    )


def _forwarded() -> list[int]:
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    return [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]


def _forwarding(stop: StopRequest) -> Callable[[int, FrameType | None], None]:
    """A handler that hands signals on to the ranks; where there are none yet it ends the launch."""

    def forward(number: int, frame: FrameType | None) -> None:
        ranks = psutil.Process().children()
        if not ranks:
            stop.on_signal(number, frame)
            stop.check()
        for rank in ranks:
            with suppress(psutil.NoSuchProcess):
                rank.send_signal(number)

    return forward
