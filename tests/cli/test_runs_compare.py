from __future__ import annotations

import re
import shutil
from pathlib import Path

from tests.cli.conftest import Command


def test_runs_are_compared_in_a_table(llmtrain: Command, trained: Path, place: Path) -> None:
    shutil.copytree(trained, place / "runs" / "a")
    again = ("--set", "optim.learning_rate=0.001", "--steps", 10, "-q", "--out", "runs/b")
    assert llmtrain("train", "-p", "tiny.yaml", *again).code == 0
    outcome = llmtrain("runs", "compare", "a", "b")
    assert re.search(r"^optim.learning_rate +auto +0\.001$", outcome.out, re.M)
    assert re.search(r"^train.steps +20 +10$", outcome.out, re.M)
    assert re.search(r"^at 2\.56k tokens +\d\.\d{4} +\d\.\d{4}$", outcome.out, re.M)
    assert re.search(r"^runs.b: worse: \+\d\.\d{4} bits per byte, noise", outcome.out, re.M)
    document = llmtrain("runs", "compare", "a", "b", "--json").document
    assert [run["step"] for run in document["runs"]] == [20, 10]
    assert document["verdicts"][0]["outcome"] == "worse"


def test_one_run_is_too_few(llmtrain: Command, trained: Path) -> None:
    outcome = llmtrain("runs", "compare", trained)
    assert (outcome.code, "takes two" in outcome.err) == (2, True)
