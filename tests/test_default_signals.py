"""Children of tests have default signal handlers, however the tests were started."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkout import ROOT
from tests.ignored_signals import ignoring

CHILD = """\
import signal
assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
"""
INNER = f"""\
import signal, subprocess, sys

def test_child():
    subprocess.run([sys.executable, "-c", {CHILD!r}], check=True)
    signal.raise_signal(signal.SIGHUP)  # still ignored here
    signal.raise_signal(signal.SIGINT)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
def test_children_have_default_handlers_under_nohup(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    (tmp_path / "test_inner.py").write_text(INNER)
    pytest_command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."]
    done = subprocess.run(
        ignoring((signal.SIGINT, signal.SIGHUP), pytest_command),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
