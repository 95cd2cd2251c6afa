"""The short form of `python -m tests.faults.signals`: what no other test strikes at."""

from __future__ import annotations

import random
import signal
import sys
from pathlib import Path

import pytest

from tests.faults import signals
from tests.faults.signals import MOMENTS, kill_at, prepare

if sys.platform == "win32":
    pytest.skip("there are no such signals", allow_module_level=True)


def test_a_signal_in_a_save_is_heeded_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "LIMIT_S", 120.0)  # a busy machine is not what this is about
    monkeypatch.chdir(tmp_path)
    prepare(big=False)
    outcome = kill_at(MOMENTS["save"], signal.SIGTERM, random.Random(0))
    assert outcome.problem is None
    assert outcome.steps >= 1
