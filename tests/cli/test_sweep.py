from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Command


@pytest.mark.slow
def test_trials_are_trained_and_the_next_command_is_said(llmtrain: Command, place: Path) -> None:
    (place / "plan.yaml").write_text(
        "profile: tiny.yaml\nsettings: {train.steps: 4, eval.every_steps: 2}\n"
        "grid: {optim.learning_rate: [0.01, 0.02]}\n"
    )
    document = llmtrain("sweep", "plan.yaml", "--json").document
    assert [trial["outcome"] for trial in document["trials"]] == ["done", "done"]
    assert document["best"] == document["trials"][0]
    assert document["command"].startswith("llmtrain train --profile tiny.yaml --set train.steps=4")
    out = llmtrain("sweep", "plan.yaml").out
    assert "optim.learning_rate" in out
    assert "next: llmtrain train" in out
    listed = llmtrain("runs", "list", "sweeps/plan", "--sort", "val_bpb", "--json").document
    assert [run["run"] for run in listed["runs"]] == [t["run"] for t in document["trials"]]


@pytest.mark.parametrize(
    ("plan", "complaint"),
    [
        ("grid: {optim.learning_rat: [1]}", "trial-000: "),
        ("profile: nothing\ngrid: {train.seed: [1]}", "nothing"),
        ("profile: tiny.yaml", "either grid or random"),
    ],
)
def test_a_plan_that_cannot_be_trained_is_refused_before_training(
    plan: str, complaint: str, llmtrain: Command, place: Path
) -> None:
    (place / "plan.yaml").write_text(plan)
    outcome = llmtrain("sweep", "plan.yaml")
    assert (outcome.code, complaint in outcome.err) == (2, True)
    assert not (place / "sweeps").exists()
