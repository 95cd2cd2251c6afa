"""A run whose text changed, moved or is gone says so, in one line."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from llmtrain.data.corpus import Corpus
from llmtrain.data.shards.prepared import PreparedData
from llmtrain.errors import DataError, UsageError
from llmtrain.prepare.changes import announce_changes, require_same_text
from llmtrain.prepare.context import PrepareContext
from llmtrain.prepare.dataset import Dataset, open_dataset, prepare_dataset, resolve_corpus
from llmtrain.profile.schema import DataSection
from llmtrain.progress import Note
from llmtrain.train.events import Event

TEXT = "some words that are said once or twice\n" * 200


class Session:
    """A section whose text is prepared, and what is announced afterwards."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.section = DataSection(sources=(str(place),))
        self.events: list[Event] = []
        self.work = PrepareContext(1, self.events.append, lambda: None)
        self.dataset: Dataset = prepare_dataset(self.section, 300, self.work)
        self.dataset.shards.close()

    @property
    def shards(self) -> PreparedData:
        return self.dataset.shards

    def resolve(self) -> Corpus:
        return resolve_corpus(self.section, self.work)

    def notes(self) -> list[str]:
        self.events.clear()
        announce_changes(self.resolve, self.section, self.shards, self.work)
        return [each.text for each in self.events if isinstance(each, Note)]


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    monkeypatch.setenv("LLMTRAIN_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "d").mkdir()
    for name in ("a.txt", "b.txt"):
        (tmp_path / "d" / name).write_text(name + TEXT)
    return Session(tmp_path / "d")


def test_unchanged_text_is_not_remarked_on(session: Session) -> None:
    assert session.notes() == []
    os.utime(session.place / "a.txt")
    assert session.notes() == []


@pytest.mark.parametrize("keeps_time", [True, False])
def test_changed_text_is_announced_with_the_file(session: Session, keeps_time: bool) -> None:
    path = session.place / "a.txt"
    before = path.stat()
    path.write_text("new " + TEXT)
    if keeps_time:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    (note,) = session.notes()
    assert note.startswith(f"the text of {session.place} has changed since it was prepared (")
    assert "a.txt" in note
    assert note.endswith("the run continues with the text as it was, from the cache")


def test_a_file_that_is_gone_or_new_is_a_change(session: Session) -> None:
    (session.place / "a.txt").rename(session.place.parent / "a.txt")
    assert "has changed" in session.notes()[0]
    (session.place.parent / "a.txt").rename(session.place / "a.txt")
    (session.place / "c.txt").write_text("more")
    assert "c.txt" in session.notes()[0]


def test_text_that_is_gone_is_announced(session: Session) -> None:
    shutil.rmtree(session.place)
    (note,) = session.notes()
    assert "does not exist" in note
    assert note.endswith("from the cache")


def test_the_same_text_elsewhere_has_the_same_fingerprint(session: Session) -> None:
    new = shutil.move(session.place, session.place.parent / "moved")
    section = DataSection(sources=(str(new),))
    fingerprint = session.shards.index.corpus_fingerprint
    corpus = resolve_corpus(section, session.work)
    require_same_text(corpus, section, section, fingerprint, session.work)
    (Path(new) / "a.txt").write_text("other")
    with pytest.raises(UsageError, match=fingerprint[:12]):
        require_same_text(corpus, section, section, fingerprint, session.work)


@pytest.mark.parametrize("change", ["gone", "changed"])
def test_a_run_without_its_cache_says_what_it_needs(session: Session, change: str) -> None:
    tokenizer = session.dataset.tokenizer_directory.rename(session.place.parent / "tok")
    shutil.rmtree(session.place.parent / "cache")
    if change == "gone":
        shutil.rmtree(session.place)
    else:
        (session.place / "a.txt").write_text("other " + TEXT)
    key = session.shards.index.key
    with pytest.raises(DataError, match=r"not in the cache|not in .*the cache") as caught:
        open_dataset(session.section, 300, key, tokenizer, session.work, 8)
    assert str(session.place) in caught.value.message
    for part in (key, "--data", str(session.place.parent / "cache")):
        assert part in str(caught.value.hint)
