"""`report-bug` shows the machine and a run, and nothing that the user wrote or named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Command

CANARY = "canarywords"


@pytest.fixture
def run(llmtrain: Command, place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose text, files, profile, prompts and metrics all say the canary."""
    home = place / CANARY
    home.mkdir()
    text = home / f"{CANARY}.txt"
    text.write_text(f"The {CANARY} sang of the sea. " * 800)
    outcome = llmtrain(
        *("train", "-p", "tiny.yaml", "--data", text, "--out", home / "run", "-q"),
        *("--set", f"name={CANARY}", "--set", f"eval.prompts=[{CANARY}]"),
    )
    assert outcome.code == 0, outcome.err
    with (home / "run" / "metrics.jsonl").open("a") as metrics:
        metrics.write(json.dumps({"step": 9, "loss": 1.0, "note": CANARY}) + "\n")
    return home / "run"


def test_nothing_that_the_user_wrote_or_named_is_reported(llmtrain: Command, run: Path) -> None:
    outcome = llmtrain("report-bug", run)

    assert outcome.code == 0
    assert CANARY in (run / "run.yaml").read_text()
    assert CANARY not in outcome.out
    assert str(run.parent) not in outcome.out


def test_decisions_settings_and_numbers_are_reported(llmtrain: Command, run: Path) -> None:
    document = json.loads(llmtrain("report-bug", run).out)

    reported = document["run"]
    assert reported["recorded"]["plan"]["device"]["value"] == "cpu"
    assert reported["recorded"]["versions"]["torch"]
    assert reported["profile"]["optim"]["schedule"] == "wsd"
    assert reported["profile"]["model"]["num_layers"] == 2
    assert "sources" not in reported["profile"]["data"]
    assert reported["data"]["source_kinds"] == ["file"]
    assert reported["result"]["stopped"] == "done"
    assert reported["metrics"][-1] == {"step": 9, "loss": 1.0}
    assert document["cpu"]["usable_cores"] >= 1


def test_the_machine_alone(llmtrain: Command) -> None:
    document = json.loads(llmtrain("report-bug").out)
    assert document["run"] is None


def test_a_file_gets_what_was_shown_once_it_is_confirmed(llmtrain: Command, place: Path) -> None:
    refused = llmtrain("report-bug", "--out", "report.json")
    assert (refused.code, (place / "report.json").exists()) == (2, False)

    shown = llmtrain("report-bug", "--out", "report.json", "--yes")
    assert (place / "report.json").read_text("utf-8") == shown.out

    again = llmtrain("report-bug", "--out", "report.json", "--yes")
    assert again.code == 2
    assert "exists" in again.err
