from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.core import TyperGroup, TyperOption

import llmtrain as package
from llmtrain.cli.app import app
from tests.cli.conftest import Command, ProcessCommand

CONTRACT = {
    *("train", "eval", "generate", "chat", "serve", "memory", "device info", "device bench"),
    *("finetune", "export", "sweep", "report-bug", "schema", "help"),
    *("tokenizer train", "tokenizer encode", "tokenizer decode", "tokenizer inspect"),
    "data inspect",
    *("profiles list", "profiles show", "profiles validate", "profiles schema"),
    *("data prepare", "data cache list", "data cache clear"),
    *("runs list", "runs show", "runs verify", "runs prove-resume"),
    *("runs compare", "runs report", "runs tag", "runs rm"),
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


@pytest.mark.parametrize("path", sorted(CONTRACT))
def test_every_help_has_one_example_and_no_types_of_python(path: str, llmtrain: Command) -> None:
    out = llmtrain(*path.split(), "--help").out
    assert out.count("Example: ") == 1
    assert f"Example: llmtrain {path}" in " ".join(out.split())
    assert not re.search(r"list\[|<(str|int|float|path)", out)


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("train --profile cpu-s", "cpu-small"),
        ("train -p ti", "tiny.yaml"),
        ("train --set model.num_l", "model.num_layers="),
        ("train --resume a", "auto"),
        ("eval fir", "first"),
        ("runs show runs/fir", "runs/first"),
        ("schema tokenizer-tr", "tokenizer-train"),
        ("profiles show gpu-l", "gpu-large"),
    ],
)
def test_the_shell_completes_names(
    words: str, completed: str, process: ProcessCommand, place: Path
) -> None:
    (place / "runs" / "first").mkdir(parents=True)
    (place / "runs" / "first" / "run.yaml").touch()
    line = f"llmtrain {words}"
    environment = {"_LLMTRAIN_COMPLETE": "complete_bash", "COMP_WORDS": line}
    cword = {"COMP_CWORD": str(len(line.split()) - 1)}
    code = (
        "import sys; sys.argv[0] = 'llmtrain'\n"
        "from llmtrain.cli.app import main\n"
        "try: main()\n"
        "finally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment | cword,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == [completed], done.stderr


@pytest.mark.parametrize(("text", "steps"), [("1e3", 1000), ("2k", 2000), ("1_000", 1000)])
def test_a_number_of_steps_is_written_as_a_count(text: str, steps: int, llmtrain: Command) -> None:
    words = ("train", "-p", "tiny.yaml", "--dry-run", "--json", "--steps")
    document = llmtrain(*words, text).document
    assert document["forecast"]["steps"]["value"] == steps


@pytest.mark.parametrize(("text", "code"), [("1.5", 2), ("1e-3", 2), ("-5", 2), ("x", 2)])
def test_what_is_no_number_of_steps_is_refused(text: str, code: int, llmtrain: Command) -> None:
    outcome = llmtrain("train", "-p", "tiny.yaml", f"--steps={text}")
    assert outcome.code == code
    assert "--steps" in outcome.err


def test_every_whole_number_can_be_written_with_an_exponent() -> None:
    """`--steps 1e3` and `--max-tokens 1e3` are read alike; a process id is no quantity."""
    whole = [
        (name, option)
        for name, command in commands()
        for option in command.params
        if isinstance(option, TyperOption)
        and option.type_descriptor.annotation is int
        and "--pid" not in option.opts
    ]
    assert len(whole) > 10
    for name, option in whole:
        context = typer.Context(COMMANDS[name])
        assert option.process_value(context, "1e3") == 1000, (name, option.opts)
