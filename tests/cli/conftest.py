"""Commands run in this process, beside a profile whose training takes a second."""

from __future__ import annotations

import functools
import io
import json
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest
from jsonschema import Draft202012Validator

import llmtrain as package
from llmtrain.cli.app import run
from llmtrain.documents.published import PUBLISHED, published_schema

PROFILE = """\
name: tiny
model: {vocab_size: 400, hidden_size: 32, intermediate_size: 64, num_layers: 2, num_heads: 2,
        context: 32}
data: {sources: [corpus.txt]}
train: {tokens_per_step: 256, steps: 20, log_every_steps: 5}
optim: {warmup_steps: 5}
eval: {every_steps: 10, tokens: 512, sample_every_steps: 10, sample_tokens: 8}
device: {kind: cpu, threads: 1}
"""


@dataclass(frozen=True)
class Outcome:
    """What a command answered."""

    code: int
    out: str
    err: str
    arguments: tuple[str, ...] = ()

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON document that stdout consists of, which is as published."""
        document: dict[str, Any] = json.loads(self.out, parse_constant=pytest.fail)
        assert document["schema_version"] == package.SCHEMA_VERSION
        assert document["llmtrain"] == package.__version__
        name = "error" if "error" in document else published_name(self.arguments)
        name = "eval-compared" if name == "eval" and "models" in document else name
        assert complaints(name, document) == []
        return document


def published_name(arguments: tuple[str, ...]) -> str:
    """Under which name the document of a command line is published."""
    candidates = ("-".join(arguments[:count]) for count in (3, 2, 1))
    name = next(words for words in candidates if words in PUBLISHED)
    if name in ("train", "finetune") and "--dry-run" in arguments:
        return f"{name}-dry-run"
    if name == "data-inspect" and "--chat" in arguments:
        return "data-inspect-chat"
    if name == "memory" and {"-p", "--profile"} & set(arguments):
        return "memory-profile"
    if name == "profiles-show" and {"--resolved", "--assume"} & set(arguments):
        return "profiles-show-resolved"
    return name


def complaints(name: str, value: object) -> list[str]:
    """Where `value` is not what is published as `name`. A key that nobody described is one."""
    validator = _validator(name)
    return [f"{name}: {error.json_path}: {error.message}" for error in validator.iter_errors(value)]


@functools.cache
def _validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(closed(published_schema(name)))


def closed(schema: Any) -> Any:
    """The schema without room for keys that it does not describe."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {name: closed(part) for name, part in schema.items()}
    if isinstance(inner.get("properties"), dict) and inner.get("type") == "object":
        inner["additionalProperties"] = False
    return inner


class Command(Protocol):
    """Runs a command line in this process."""

    def __call__(self, *arguments: object, stdin: bytes = b"") -> Outcome: ...


class ProcessCommand(Protocol):
    """Runs a command line as a process of its own, with options of `subprocess.run`."""

    def __call__(
        self, *arguments: object, **options: Any
    ) -> subprocess.CompletedProcess[bytes]: ...


Snapshot = Callable[[Path, str], None]  # compares a text with a file


def _furnish(directory: Path) -> None:
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 7))) for _ in range(300)]
    text = "\n".join(" ".join(draw.choices(words, k=9)) for _ in range(800))
    (directory / "tiny.yaml").write_text(PROFILE)
    (directory / "corpus.txt").write_text(text)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a profile and its text."""
    _furnish(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def llmtrain(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Command:
    """Runs a command line in this process; `stdin` is what it can read."""

    def call(*arguments: object, stdin: bytes = b"") -> Outcome:
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
            words = tuple(str(argument) for argument in arguments)
            code = run(words)
        return Outcome(code, *capsys.readouterr(), words)

    return call


@pytest.fixture
def process(place: Path) -> ProcessCommand:
    """Runs a command line as a process of its own, in bytes."""

    def call(*arguments: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "llmtrain", *map(str, arguments)]
        options = {"stdin": subprocess.DEVNULL, "capture_output": True} | options
        return subprocess.run(command, timeout=200, check=False, **options)

    return call


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished run; nobody changes it."""
    directory = tmp_path_factory.mktemp("trained")
    _furnish(directory)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        assert run(["train", "-p", "tiny.yaml", "--out", str(directory / "run"), "-q"]) == 0
    return directory / "run"
