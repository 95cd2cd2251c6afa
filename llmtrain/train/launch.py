"""Several processes on this machine, started through torchrun's agent."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import psutil
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from llmtrain.files import OUTCOME_FILE_VARIABLE


def launch(processes: int, arguments: Sequence[str], *, debug: bool) -> int:
    """Runs `llmtrain ARGUMENTS` as so many ranks; returns the exit code that rank 0 recorded.

    The ranks are in process groups of their own, so that a Ctrl-C reaches them only once:
    through here.
    """
    if not debug:
        logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="llmtrain-") as directory:
        outcome = Path(directory) / "outcome"
        os.environ[OUTCOME_FILE_VARIABLE] = str(outcome)
        os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGABRT"  # the others are forwarded here
        if sys.platform == "win32":
            os.environ.setdefault("USE_LIBUV", "0")  # Windows wheels are built without it
        previous = {number: signal.signal(number, _forward) for number in _forwarded()}
        try:
            agent = elastic_launch(_config(processes), sys.executable)
            agent("-m", "llmtrain", *arguments)
        except ChildFailedError:
            if debug:
                raise
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        return int(outcome.read_text(encoding="ascii")) if outcome.exists() else 1


def _config(processes: int) -> LaunchConfig:
    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.2,
    )


def _forwarded() -> list[int]:
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    return [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]


def _forward(number: int, _frame: FrameType | None) -> None:
    for child in psutil.Process().children():
        try:
            child.send_signal(number)
        except psutil.NoSuchProcess:
            continue
