from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
import yaml

from tests.cli.conftest import Command


@pytest.fixture
def run(trained: Path, place: Path) -> Path:
    """A finished run under runs/, which no process trains."""
    run = shutil.copytree(trained, place / "runs" / "a")
    record = yaml.safe_load((run / "run.yaml").read_text())
    record["sessions"][0]["process"] = "1 1.0"
    (run / "run.yaml").write_text(yaml.safe_dump(record))
    return run


def test_tags_are_added_shown_and_taken_away(llmtrain: Command, run: Path) -> None:
    assert llmtrain("runs", "tag", "a", "best", "2026").out == "2026\nbest\n"
    assert re.search(r"^tags +2026, best$", llmtrain("runs", "show", "a").out, re.M)
    document = llmtrain("runs", "tag", "a", "--remove", "2026", "--json").document
    assert document["tags"] == ["best"]
    assert llmtrain("runs", "list", "--where", "tags=best", "--json").document["runs"]


def test_tags_outlive_a_resume(llmtrain: Command, run: Path) -> None:
    assert llmtrain("runs", "tag", "a", "best").code == 0
    assert llmtrain("train", "--resume", "a", "--steps", 22, "-q").code == 0
    assert llmtrain("runs", "tag", "a").out == "best\n"


@pytest.mark.parametrize("words", [("", "empty"), ("a b", "not a tag"), ("../x", "not a tag")])
def test_what_is_no_tag_is_refused(words: tuple[str, str], llmtrain: Command, run: Path) -> None:
    outcome = llmtrain("runs", "tag", "a", words[0])
    assert (outcome.code, words[1] in outcome.err) == (2, True)
    assert not (run / "tags.json").exists()


def test_a_missing_tag_cannot_be_taken_away(llmtrain: Command, run: Path) -> None:
    outcome = llmtrain("runs", "tag", "a", "--remove", "x")
    assert (outcome.code, "has no tag x" in outcome.err) == (2, True)


def test_a_run_is_removed_whole(llmtrain: Command, run: Path) -> None:
    outcome = llmtrain("runs", "rm", "a", "--yes", "--json")
    assert outcome.document["freed_bytes"] > 100_000
    assert not run.exists()


def test_nothing_is_removed_without_a_word(llmtrain: Command, run: Path) -> None:
    before = sorted(run.rglob("*"))
    outcome = llmtrain("runs", "rm", "a")
    assert (outcome.code, "--yes" in outcome.err) == (2, True)
    assert sorted(run.rglob("*")) == before


def test_files_of_the_user_stay(llmtrain: Command, run: Path) -> None:
    (run / "notes.txt").write_text("mine")
    outcome = llmtrain("runs", "rm", "a", "--yes")
    assert [path.name for path in run.iterdir()] == ["notes.txt"]
    assert "still holds notes.txt" in outcome.err


def test_a_run_in_training_is_not_removed(llmtrain: Command, run: Path, trained: Path) -> None:
    record = yaml.safe_load((trained / "run.yaml").read_text())  # of this process
    del record["result"]
    (run / "run.yaml").write_text(yaml.safe_dump(record))
    outcome = llmtrain("runs", "rm", "a", "--yes")
    assert (outcome.code, "is being trained" in outcome.err) == (2, True)
    assert run.exists()


@pytest.mark.skipif(os.name == "nt", reason="links need a right there")
def test_what_a_link_points_to_is_not_removed(llmtrain: Command, run: Path, place: Path) -> None:
    precious = place / "precious"
    (run / "checkpoints").rename(precious)
    (run / "checkpoints").symlink_to(precious)
    assert llmtrain("runs", "rm", "a", "--yes").code == 2
    assert list(precious.iterdir())
