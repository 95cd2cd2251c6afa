"""A process is found while it runs, and not taken for another after."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from llmtrain.machine.process_identity import identity_of, running_process


def test_a_process_is_known_by_when_it_started_too() -> None:
    pid, started_s = identity_of(os.getpid()).split()
    assert running_process(f"{pid} {started_s}") == os.getpid()
    assert running_process(f"{pid} {float(started_s) - 60}") is None  # its number was another's
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    assert running_process(f"{ended.pid} {started_s}") is None


@pytest.mark.parametrize("identity", ["", "1", "one 2", "-1 2.0", "1 nan", "99999999999999 1.0"])
def test_what_names_no_process_is_none(identity: str) -> None:
    assert running_process(identity) is None
