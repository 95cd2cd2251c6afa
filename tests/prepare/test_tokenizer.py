"""A tokenizer that is in the cache is used where it is whole, and made again where it is not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmtrain.errors import DataError, LlmtrainError
from llmtrain.prepare.context import PrepareContext
from llmtrain.prepare.dataset import prepare_dataset
from llmtrain.profile.schema import DataSection
from llmtrain.progress import Note
from llmtrain.train.events import Event

posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no such rights")


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLMTRAIN_CACHE_DIR", str(tmp_path / "cache"))
    path = tmp_path / "a.txt"
    path.write_text("some words that are said once or twice\n" * 200)
    return path


def prepared(text: Path) -> tuple[Path, list[str]]:
    """Where the tokenizer is, and what was told."""
    events: list[Event] = []
    section = DataSection(sources=(str(text),))
    dataset = prepare_dataset(section, 300, PrepareContext(1, events.append, lambda: None))
    dataset.shards.close()
    return dataset.tokenizer_directory, [each.text for each in events if isinstance(each, Note)]


def test_it_is_made_once(text: Path) -> None:
    directory, told = prepared(text)
    assert any(note.startswith("training a tokenizer") for note in told)
    again, told = prepared(text)
    assert again == directory
    assert not any(note.startswith("training a tokenizer") for note in told)
    assert [path.name for path in directory.parent.iterdir()] == [directory.name]


@pytest.mark.parametrize("name", ["tokenizer.model", ""])
def test_one_that_is_damaged_is_made_again(text: Path, name: str) -> None:
    directory, _ = prepared(text)
    whole = (directory / "tokenizer.model").read_bytes()
    if name:
        (directory / name).write_bytes(whole[:100])
    else:
        for path in directory.iterdir():
            path.unlink()
    again, told = prepared(text)
    assert (again, (again / "tokenizer.model").read_bytes()) == (directory, whole)
    assert any(note.startswith("training a tokenizer") for note in told)


@posix
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all")
def test_what_another_user_keeps_to_himself_is_not_made_again(text: Path) -> None:
    directory, _ = prepared(text)
    (directory / "tokenizer.model").chmod(0)
    with pytest.raises(DataError, match="may not be read by this one"):
        prepared(text)


def test_a_cache_that_cannot_be_written_is_named(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LLMTRAIN_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(LlmtrainError, match="cannot write a tokenizer to") as caught:
        prepared(text)
    assert "LLMTRAIN_CACHE_DIR" in str(caught.value.hint)
