from __future__ import annotations

from pathlib import Path

from tests.cli.conftest import Command


def test_the_text_may_be_named_as_for_train(llmtrain: Command, place: Path) -> None:
    outcome = llmtrain("memory", "-p", "tiny.yaml", "--data", "corpus.txt", "--json")
    assert outcome.code == 0
    assert outcome.document["fits"]


def test_text_without_a_profile_is_an_error(llmtrain: Command, place: Path) -> None:
    outcome = llmtrain("memory", "--data", "corpus.txt")
    assert outcome.code == 2
    assert "--profile" in outcome.err
    assert llmtrain("memory", "--watch", "--data", "corpus.txt").code == 2
