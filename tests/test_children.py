"""Processes of our own import what we import, wherever the user stands."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmtrain import children
from llmtrain.children import MAIN, WorkerProgram, _Worker, ask_workers, python_command, serve
from llmtrain.errors import LlmtrainError, UsageError
from tests.checkout import ROOT
from tests.unread import unread_by


def test_a_file_in_the_working_directory_is_no_library(tmp_path: Path) -> None:
    for name in ("typer", "sentencepiece", "json", "llmtrain"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('taken from the data')")
    command = python_command(MAIN, "profiles", "list", "--json")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert '"cpu-tiny"' in done.stdout


def test_arguments_are_those_of_the_command() -> None:
    command = python_command("llmtrain.units:format_bytes", "a b", "--c")
    assert command[-2:] == ["a b", "--c"]


def serve_upper_case() -> None:
    """Serve as a worker that refuses a request from its first string on."""

    def handle(parts: Iterator[bytes]) -> list[bytes]:
        first = next(parts)
        if first == b"refuse":
            raise UsageError("no", hint="ask otherwise")
        return [first.upper(), *(part.upper() for part in parts)]

    serve(handle)


def test_a_worker_answers_after_it_refused() -> None:
    """What a refusal leaves unread of a long request is not taken for the next request."""
    program = WorkerProgram("tests.test_children:serve_upper_case", (), "wrote", "again")
    long = [b"x" * 100_000] * 20
    answers = ask_workers(program, [[b"a", b"", *long]], lambda: None)
    assert list(answers) == [[b"A", b"", *(part.upper() for part in long)]]
    worker = _Worker(program)
    with worker:
        with pytest.raises(UsageError, match="no") as caught:
            worker.ask([b"refuse", *long])
        assert caught.value.hint == "ask otherwise"
        assert worker.ask([b"b"]) == [b"B"]


def test_a_worker_that_died_is_named_where_its_pipe_fails_as_on_windows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(children, "start_process", unread_by(children.start_process))
    program = WorkerProgram("os:getpid", (), "wrote", "again")  # it ends at once
    with pytest.raises(LlmtrainError, match=r"process \d+, which wrote, ended with code 0"):
        list(ask_workers(program, [[b"a"]], lambda: None))


def test_a_command_that_we_start_begins_as_the_users_does() -> None:
    """What precedes its imports, such as the restart that sets the allocator, is done there too."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'\nllmtrain = "{MAIN}"\n' in text
