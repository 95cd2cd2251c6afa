"""Ctrl-C ends a command with 130 wherever it is, also where a library drops KeyboardInterrupt."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.checkout import ROOT

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")

_BEGIN = """\
import signal, sys, time
from llmtrain.interrupts import end_on_interrupt
end_on_interrupt()
"""
_SWALLOWING = """\
import signal, time
try:
    signal.raise_signal(signal.SIGINT)
    time.sleep(0.01)
except BaseException:
    pass
"""
_DROPPED = """
class Dropping:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)
        time.sleep(0)

try:
    Dropping()
    for _ in range(1000):
        time.sleep(0.01)
    print("went on")
except KeyboardInterrupt:
    sys.exit(130)
"""


def run_code(code: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **more}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment
    )


def test_an_import_that_swallows_it_ends_with_130(tmp_path: Path) -> None:
    (tmp_path / "swallowing.py").write_text(_SWALLOWING)
    code = f"{_BEGIN}sys.path.insert(0, {str(tmp_path)!r})\nimport swallowing\nprint('went on')"
    done = run_code(code)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_where_exceptions_are_dropped_it_is_raised_again() -> None:
    done = run_code(_BEGIN + _DROPPED)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_it_stays_ignored_where_it_was() -> None:
    ignored = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    done = run_code(f"{ignored}{_BEGIN}signal.raise_signal(signal.SIGINT)\nprint('went on')")
    assert (done.returncode, done.stdout) == (0, "went on\n")


def test_other_exceptions_that_are_dropped_are_shown() -> None:
    code = "class Failing:\n    def __del__(self):\n        raise ValueError('shown')\n\nFailing()"
    assert "ValueError: shown" in run_code(f"{_BEGIN}{code}").stderr


@pytest.mark.parametrize("after_s", [0.15, 0.3, 0.6])
def test_a_command_that_starts_ends_with_130(tmp_path: Path, after_s: float) -> None:
    """A command that waits for stdin, interrupted while it starts or waits.

    Before Python has its handler, the signal itself ends the process, which shells call 130 too.
    """
    command = [sys.executable, "-m", "llmtrain", "data", "inspect", "--data", "-"]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        time.sleep(after_s)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT, 75)
    assert b"Traceback" not in stderr
