"""The short form of `python -m tests.faults.kills`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.kills import prove, report
from tests.faults.tiny import furnish


def test_a_training_that_was_killed_ends_as_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    furnish(tmp_path)
    monkeypatch.chdir(tmp_path)
    proof = prove(kills=4, steps=8, ranks=1, seed=1)
    assert len(proof.kills) == 4, report(proof)
    assert proof.is_equal, report(proof)
    assert [line["step"] for line in proof.interrupted.course if "loss" in line] == list(
        range(1, 9)
    )
