"""Fixtures for training a model that takes a second, and for starting and stopping its runs."""

from __future__ import annotations

import io
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

import llmtrain.model.step_timing  # so that the timing of tests is short, of the first one too
from llmtrain.cli.app import run
from tests.pinned import pinned_options
from tests.train.harness import (
    PROFILE,
    Files,
    InProcessTrainer,
    Llmtrain,
    Outcome,
    RunAlone,
    Start,
)

Furnish = Callable[[Path], InProcessTrainer]


@pytest.fixture(scope="session")
def corpus_text() -> str:
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 7))) for _ in range(300)]
    return "\n".join(" ".join(draw.choices(words, k=9)) for _ in range(800))


@pytest.fixture(scope="session")
def furnish(corpus_text: str) -> Furnish:
    """Puts a profile and its text into a directory, and returns what trains them there."""

    def fill(directory: Path) -> InProcessTrainer:
        (directory / "tiny.yaml").write_text(PROFILE)
        (directory / "corpus.txt").write_text(corpus_text)
        return InProcessTrainer(Path("tiny.yaml"))

    return fill


@pytest.fixture
def place(tmp_path: Path, furnish: Furnish, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a profile and its text."""
    furnish(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def train(place: Path) -> InProcessTrainer:
    return InProcessTrainer(Path("tiny.yaml"))


@pytest.fixture(scope="session")
def run_alone(tmp_path_factory: pytest.TempPathFactory, furnish: Furnish) -> RunAlone:
    """A run that nothing interrupts, in a directory of its own."""

    def complete(**settings: Any) -> Files:
        directory = tmp_path_factory.mktemp("alone")
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(directory)
            furnish(directory)(directory / "run", **settings)
        return Files(directory / "run")

    return complete


@pytest.fixture(scope="session")
def reference(run_alone: RunAlone) -> Files:
    """The profile's own run, uninterrupted."""
    return run_alone()


@pytest.fixture
def llmtrain(place: Path, capsys: pytest.CaptureFixture[str]) -> Llmtrain:
    """Runs a command line in this process."""

    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        return Outcome(code, *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def already_measured() -> set[str]:
    """With which settings this worker has measured what runs of the profile do."""
    return set()


@pytest.fixture
def measured(place: Path, already_measured: set[str], _short_timing: None) -> None:
    """What processes would each measure again on a busy machine is measured here, briefly."""
    half = ["--set", "train.tokens_per_step=128"]  # of each of two ranks
    for options in ([], pinned_options(), half, [*half, *pinned_options()]):
        if str(options) not in already_measured:
            with redirect_stdout(io.StringIO()):
                assert run(["train", "-p", "tiny.yaml", "--dry-run", "--quiet", *options]) == 0
            already_measured.add(str(options))


@pytest.fixture
def start(measured: None) -> Iterator[Start]:
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
