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

from llmtrain.cli.streams import UnfailingStream
from llmtrain.train.checkpoint.format import list_checkpoints, load_state
from tests.cli.conftest import ProcessCommand


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
