"""A reader that goes away ends no training."""

from __future__ import annotations

import errno
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llmtrain.cli.output import Output
from llmtrain.cli.streams import UnfailingStream, set_up_standard_streams, write_text
from llmtrain.train.checkpoint.format import load_state
from llmtrain.train.checkpoint.names import list_checkpoints
from tests.cli.conftest import Command, ProcessCommand


def command(*arguments: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "llmtrain",
        "train",
        "-p",
        "tiny.yaml",
        "--out",
        "run",
        *arguments,
    ]


def is_finished(run: Path) -> bool:
    return load_state(list_checkpoints(run / "checkpoints")[-1]).finished


def test_training_goes_on_where_nobody_reads_any_more(place: Path) -> None:
    with subprocess.Popen(
        command("--json"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
    assert process.returncode == 0
    assert is_finished(place / "run")


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell closes them")
def test_training_goes_on_with_closed_streams_and_writes_nothing_of_them(place: Path) -> None:
    line = " ".join(command("--json"))
    done = subprocess.run(["sh", "-c", f"exec {line} <&- >&- 2>&-"], check=False)
    assert done.returncode == 0
    assert is_finished(place / "run")
    assert "{" not in (place / "run" / "run.yaml").read_text()[:1]


class Failing(io.StringIO):
    """A stream whose terminal was closed."""

    def write(self, text: str) -> int:
        raise OSError(errno.EIO, "Input/output error")

    def flush(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_what_cannot_be_written_is_lost() -> None:
    for stream in (UnfailingStream(Failing()), closed()):
        assert stream.write("words") == 5
        stream.flush()
        assert not stream.isatty()
    heard = io.StringIO()
    UnfailingStream(heard).write("words")
    assert heard.getvalue() == "words"


def closed() -> UnfailingStream:
    stream = io.StringIO()
    stream.close()
    return UnfailingStream(stream)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no disk that is always full")
def test_a_full_disk_under_stdout_is_a_failure(process: ProcessCommand) -> None:
    with Path("/dev/full").open("wb") as full:
        done = process("profiles", "list", "--json", capture_output=False, stdout=full)
    assert done.returncode != 0


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such terminal")
def test_a_terminal_that_is_closed_saves_the_run(place: Path) -> None:
    main, terminal = os.openpty()
    steps = ("--steps", "5000", "--set", "eval.every_steps=9999", "--json")
    process = subprocess.Popen(
        command(*steps, "--set", "eval.sample_every_steps=9999"),
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=lambda: _take_terminal(terminal),
    )
    os.close(terminal)
    seen = b""
    while re.search(rb"step \d+/", seen) is None:  # not every step is drawn
        seen += os.read(main, 4096)
    os.close(main)  # the kernel sends SIGHUP, and every write fails from now on
    assert process.wait(200) == 75
    saved = load_state(list_checkpoints(place / "run" / "checkpoints")[-1])
    assert 0 < saved.step < 5000


def _take_terminal(terminal: int) -> None:
    import fcntl
    import termios

    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)


ENCODINGS = ["ascii", "cp1252", "latin-1", "utf-8"]
PRINTING = [
    ("device", "info"),
    ("device", "info", "--json"),
    ("runs", "list", "läufe"),
    ("profiles", "show", "cpu-tiny", "--resolved"),
    ("memory",),
    ("--help",),
    ("runs", "show", "nö→"),
    ("runs", "show", "nö→", "--json"),
]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
@pytest.mark.parametrize("arguments", PRINTING, ids=" ".join)
def test_any_encoding_takes_any_text(
    process: ProcessCommand, arguments: tuple[str, ...], encoding: str
) -> None:
    done = process(*arguments, env=os.environ | {"PYTHONIOENCODING": encoding})
    assert b"codec" not in done.stderr
    is_refused = {"nö→", "läufe"} & set(arguments)  # names of what is not there
    assert done.returncode == (2 if is_refused else 0)
    done.stdout.decode(encoding)
    if "--json" in arguments:
        assert done.stdout.isascii()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_generated_text_survives_any_encoding(
    process: ProcessCommand, trained: Path, encoding: str
) -> None:
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    words = ("generate", trained, "--prompt", "→é\x1b", "--max-tokens", "4")
    done = process(*words, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode(encoding).startswith(
        "→é\x1b".encode(encoding, "backslashreplace").decode(encoding)
    )


def test_a_pipe_gets_utf_8_whatever_the_locale_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONIOENCODING", raising=False)
    pipe = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(pipe, encoding="cp1252"))
    set_up_standard_streams()
    write_text("→\udce9", flush=True)
    assert pipe.getvalue() == "→\\udce9".encode()


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_terminal_does_not_obey_a_generated_text(
    monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: is_terminal)
    monkeypatch.setattr(sys, "stdout", stream)
    Output().text("a\x1b[2J\n")
    assert stream.getvalue() == ("a\\u001b[2J\n" if is_terminal else "a\x1b[2J\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no disk that is always full")
@pytest.mark.parametrize(
    "arguments",
    [("profiles", "list", "--json"), ("profiles", "list"), ("runs", "show", "x", "--json")],
    ids=" ".join,
)
def test_stdout_that_takes_nothing_is_one_line(
    process: ProcessCommand, arguments: tuple[str, ...]
) -> None:
    with Path("/dev/full").open("wb") as full:
        done = process(*arguments, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    err = done.stderr.decode()
    assert "Traceback" not in err
    assert "Exception ignored" not in err
    assert err.startswith("error: ")
    if arguments[0] == "profiles":
        assert done.returncode == 1
        assert "stdout: No space left on device" in err


BAD = os.fsdecode(b"caf\xe9")


@pytest.mark.skipif(sys.platform == "win32", reason="arguments are Unicode there")
@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("train", "--out", BAD), "--out"),
        (("train", "--resume", BAD), "--resume"),
        (("train", "--profile", BAD), "--profile"),
        (("generate", "run", "--prompt", BAD), "--prompt"),
        (("tokenizer", "train", "--vocab-size", "400", "--out", BAD), "--out"),
        (("eval", BAD), "RUN"),
    ],
)
def test_a_value_that_is_not_utf_8_is_refused_at_once(
    llmtrain: Command, place: Path, arguments: tuple[str, ...], name: str
) -> None:
    before = sorted(place.iterdir())
    outcome = llmtrain(*arguments)
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: {name} caf\\xe9 is not UTF-8\nhint: ")
    assert sorted(place.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        *((("train", option, ""), option) for option in ("--out", "--resume", "--data")),
        *((("train", option, ""), option) for option in ("--profile", "--tokenizer", "--steps")),
        (("train", "-p", ""), "--profile"),
        (("train", "--out="), "--out"),
        (("train", "--data", "corpus.txt", "--data", " "), "--data"),
        (("memory", "--profile", ""), "--profile"),
        (("eval", ""), "RUN"),
        (("runs", "list", ""), "DIRECTORY"),
        (("tokenizer", "train", "--vocab-size", "400", "--out", ""), "--out"),
    ],
)
def test_an_unset_shell_variable_is_a_usage_error(
    llmtrain: Command, place: Path, arguments: tuple[str, ...], name: str
) -> None:
    before = sorted(place.iterdir())
    outcome = llmtrain(*arguments)
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: {name} is empty\nhint: ")
    assert sorted(place.iterdir()) == before
