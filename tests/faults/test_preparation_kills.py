"""The short form of `python -m tests.faults.preparation_kills`."""

from __future__ import annotations

from pathlib import Path

from tests.faults.preparation_kills import kill_at


def test_a_preparation_that_was_killed_ends_as_one_that_was_not(tmp_path: Path) -> None:
    tally = kill_at(tmp_path, kills=3, workers=2, seed=3)
    assert tally.broken == []
    assert tally.kills == 3
