"""A model that trains in a second, and the ways to start, stop and look at its runs."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from llmtrain.cli.app import run
from llmtrain.engine.request import TrainRequest
from llmtrain.engine.train_run import TrainSession, run_training
from llmtrain.profile.load import Setting
from llmtrain.train.distributed.signals import StopRequest
from llmtrain.train.distributed.world import World
from llmtrain.train.events import Event, TrainResult

PROFILE = """\
name: tiny
model: {vocab_size: 400, hidden_size: 32, intermediate_size: 64, num_layers: 2, num_heads: 2,
        context: 32}
data: {sources: [corpus.txt]}
train: {tokens_per_step: 256, steps: 20, log_every_steps: 1}
optim: {warmup_steps: 5}
eval: {every_steps: 10, tokens: 512, sample_every_steps: 10, sample_tokens: 8}
device: {kind: cpu, threads: 1}
"""


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
class Trainer:
    """Runs in this process, which a predicate on events can stop as a signal would."""

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


@pytest.fixture(scope="session")
def corpus_text() -> str:
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 7))) for _ in range(300)]
    return "\n".join(" ".join(draw.choices(words, k=9)) for _ in range(800))


@pytest.fixture(scope="session")
def furnish(corpus_text: str) -> Callable[[Path], Trainer]:
    """Puts a profile and its text into a directory, and returns what trains them there."""

    def fill(directory: Path) -> Trainer:
        (directory / "tiny.yaml").write_text(PROFILE)
        (directory / "corpus.txt").write_text(corpus_text)
        return Trainer(Path("tiny.yaml"))

    return fill


@pytest.fixture
def place(
    tmp_path: Path, furnish: Callable[[Path], Trainer], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The working directory, with a profile and its text."""
    furnish(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def train(place: Path) -> Trainer:
    return Trainer(Path("tiny.yaml"))


@pytest.fixture(scope="session")
def run_alone(
    tmp_path_factory: pytest.TempPathFactory, furnish: Callable[[Path], Trainer]
) -> Callable[..., Files]:
    """A run that nothing interrupts, in a directory of its own."""

    def complete(**settings: Any) -> Files:
        directory = tmp_path_factory.mktemp("alone")
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(directory)
            furnish(directory)(directory / "run", **settings)
        return Files(directory / "run")

    return complete


@pytest.fixture(scope="session")
def reference(run_alone: Callable[..., Files]) -> Files:
    """The profile's own run, uninterrupted."""
    return run_alone()


@pytest.fixture
def files() -> type[Files]:
    return Files


@pytest.fixture
def llmtrain(place: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs a command line in this process."""

    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        return Outcome(code, *capsys.readouterr())

    return call


@pytest.fixture
def start(place: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a command line as a process of its own; what still runs at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def begin(*arguments: object, module: tuple[str, ...] = ("llmtrain",)) -> Any:
        process = subprocess.Popen(
            [sys.executable, "-m", *module, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()
