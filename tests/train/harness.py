"""What the tests of training share: a model that trains in a second, and ways to train it."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmtrain.engine.request import TrainRequest
from llmtrain.engine.train_run import run_training
from llmtrain.engine.train_session import TrainSession
from llmtrain.profile.setting import Setting
from llmtrain.train.distributed.world import World
from llmtrain.train.events import Event, TrainResult
from llmtrain.train.run_directory.directory import RunDirectory
from llmtrain.train.run_directory.record import write_run_file
from llmtrain.train.signals import StopRequest

LIMIT_S = 200
PROFILE = """\
name: tiny
model: {vocab_size: 400, hidden_size: 32, intermediate_size: 64, num_layers: 2, num_heads: 2,
        context: 32}
data: {sources: [corpus.txt]}
train: {tokens_per_step: 256, steps: 20, log_every_steps: 1}
optim: {warmup_steps: 5}
eval: {every_steps: 10, tokens: 512, sample_every_steps: 10, sample_tokens: 8}
device: {kind: cpu, threads: 1, compile: false}
"""


def forget_saved_states(run: Path) -> None:
    """Leave of a run what is there when it is killed before its first checkpoint."""
    shutil.rmtree(run / "checkpoints")
    record = RunDirectory(run).read_record()
    record["sessions"][0].pop("saved_step")
    write_run_file(run / "run.yaml", record | {"result": None})


@dataclass(frozen=True)
class Files:
    """What a run left behind."""

    path: Path

    @property
    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in (self.path / "checkpoints").iterdir())

    @property
    def newest(self) -> Path:
        return max((self.path / "checkpoints").glob("step-????????"))

    def digests(self) -> dict[str, str]:
        """sha256 of the last weights and optimizer state."""
        return {
            name: hashlib.sha256((self.newest / name).read_bytes()).hexdigest()
            for name in ("model.safetensors", "optimizer.safetensors")
        }

    def lines(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.path / name).read_text().splitlines()]

    def course(self) -> list[dict[str, Any]]:
        """The metrics without what depends on the clock and the memory."""
        timeless = ("step", "tokens", "loss", "lr", "grad_norm", "val_loss", "val_bpb")
        return [
            {name: line[name] for name in timeless if name in line}
            for line in self.lines("metrics.jsonl")
        ]


@dataclass(frozen=True)
class Outcome:
    """What a command answered."""

    code: int
    out: str
    err: str


@dataclass
class InProcessTrainer:
    """Trains in this process; a predicate on events can stop a run like a signal."""

    profile: Path
    events: list[Event] = field(default_factory=list)

    def __call__(
        self,
        out: Path,
        *,
        stop_at: Callable[[Event], bool] = lambda event: False,
        resume: str | None = None,
        **settings: Any,
    ) -> TrainResult:
        stop = StopRequest()

        def observe(event: Event) -> None:
            self.events.append(event)
            if not stop.is_made and stop_at(event):
                stop.on_signal(signal.SIGTERM, None)

        flags = {
            key.replace("__", "."): Setting(value, f"argument {key}")
            for key, value in settings.items()
        }
        request = TrainRequest(profile=str(self.profile), flags=flags, out=out, resume=resume)
        return run_training(request, TrainSession(World(), observe, stop))


def wait_until(is_true: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait for something that a process does, which must not end before."""
    end_s = time.monotonic() + LIMIT_S
    while not is_true():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end_s
        time.sleep(0.01)


def steps_of(run: Path) -> int:
    """How many steps a run has logged."""
    metrics = run / "metrics.jsonl"
    return metrics.read_bytes().count(b'"loss"') if metrics.is_file() else 0


Llmtrain = Callable[..., Outcome]  # runs a command line in this process
Start = Callable[..., "subprocess.Popen[str]"]  # starts one as a process of its own
RunAlone = Callable[..., Files]  # trains without interruption in a directory of its own
