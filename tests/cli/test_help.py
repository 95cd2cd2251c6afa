from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.core import TyperGroup

import llmtrain as package
from llmtrain.cli.app import app
from tests.cli.conftest import Command, ProcessCommand

CONTRACT = {
    *("train", "eval", "generate", "memory", "device info", "device bench", "schema"),
    *("tokenizer train", "tokenizer encode", "tokenizer decode", "tokenizer inspect"),
    "data inspect",
    *("profiles list", "profiles show", "profiles validate", "profiles schema"),
    *("data prepare", "data cache list", "data cache clear"),
    *("runs list", "runs show", "runs verify", "runs prove-resume"),
}


def commands(command: Any = None, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every command and group with what is typed for it."""
    command = command or typer.main.get_command(app)
    yield path.strip(), command
    if isinstance(command, TyperGroup):
        for name, inner in command.commands.items():
            yield from commands(inner, f"{path} {name}")


COMMANDS = dict(commands())


def test_the_commands_of_the_contract_are_there() -> None:
    assert set(COMMANDS) >= CONTRACT


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_and_option_is_explained(path: str, llmtrain: Command) -> None:
    command = COMMANDS[path]
    assert command.help
    assert all(parameter.help for parameter in command.params), path

    outcome = llmtrain(*path.split(), "--help")

    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith("Usage: ")
    assert " ".join(command.help.split()).split(".")[0] in " ".join(outcome.out.split())


@pytest.mark.parametrize("path", sorted(CONTRACT))
def test_every_command_can_be_quiet_loud_and_debugged(path: str) -> None:
    names = {name for parameter in COMMANDS[path].params for name in parameter.opts}
    assert {"--quiet", "-q", "--verbose", "-v", "--debug"} <= names


@pytest.mark.parametrize(
    "arguments",
    [(), ("data",), ("data", "cache"), ("device",), ("profiles",), ("runs",), ("tokenizer",)],
)
def test_group_alone_shows_its_help(arguments: tuple[str, ...], llmtrain: Command) -> None:
    outcome = llmtrain(*arguments)
    assert outcome.code == 0
    assert outcome.out.startswith("Usage: ")


def test_version(llmtrain: Command) -> None:
    outcome = llmtrain("--version")
    assert (outcome.code, outcome.out) == (0, f"llmtrain {package.__version__}\n")


def test_quiet_says_nothing_when_all_is_well(llmtrain: Command, trained: Path) -> None:
    for arguments in (
        ("train", "-p", "tiny.yaml", "--out", "run"),
        ("eval", "run"),
        ("generate", "run", "--max-tokens", 3),
        ("train", "--out", "run", "--resume", "auto"),
        ("runs", "list"),
        ("tokenizer", "train", "--data", "corpus.txt", "--vocab-size", 320, "--out", "t"),
    ):
        outcome = llmtrain(*arguments, "-q")
        assert (outcome.code, outcome.err) == (0, "")


def test_verbose_says_more(llmtrain: Command, trained: Path) -> None:
    plain = llmtrain("train", "-p", "tiny.yaml", "--out", "plain").err
    loud = llmtrain("train", "-p", "tiny.yaml", "--out", "loud", "-v").err

    assert "asked for" not in plain
    assert "threads: 1 (asked for)" in loud
    without_names = [re.sub(r"\d", "", text).count("\n") for text in (plain, loud)]
    assert without_names[1] > without_names[0]


@pytest.mark.parametrize("arguments", [("profiles", "schema"), ("profiles", "list", "--json")])
def test_closed_pipe_is_no_failure(arguments: tuple[str, ...], process: ProcessCommand) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = process(*arguments, capture_output=False, stdout=writer, stderr=subprocess.PIPE)
    finally:
        os.close(writer)

    assert (done.returncode, done.stderr) == (0, b"")
