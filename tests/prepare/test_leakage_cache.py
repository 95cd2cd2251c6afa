from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmtrain.data.corpus import Corpus
from llmtrain.data.quality.leakage import Leakage
from llmtrain.data.sources.resolve import resolve_sources
from llmtrain.prepare import leakage_cache
from llmtrain.prepare.context import MeasuredText, PrepareContext
from llmtrain.prepare.leakage_cache import cached_leakage, leakage_warning
from llmtrain.profile.schema import DataSection
from tests.benchmarks.near_duplicates import invented


def cached(corpus: Corpus, fraction: float) -> Leakage | None:
    """The leakage of a split, as a run prepares it and nobody stops it."""
    section = DataSection(validation_fraction=fraction)
    prepare = PrepareContext(1, lambda _: None, lambda: None)
    return cached_leakage(MeasuredText(corpus, corpus.measure(), section, prepare))


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    """60 documents and their near copies, beside an empty cache."""
    monkeypatch.setenv("LLMTRAIN_CACHE_DIR", str(tmp_path / "cache"))
    originals = [text[:500] for text in invented(60, seed=1)]
    texts = originals + [text.replace(" ", "\n") for text in originals]
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return resolve_sources([str(path)])


def kept_file(directory: Path) -> Path:
    (path,) = (directory / "cache" / "leakage").iterdir()
    return path


def test_it_is_looked_for_once(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    found = cached(corpus, 0.2)
    assert found is not None
    assert found.copies > 0

    monkeypatch.setattr(leakage_cache, "find_leakage", lambda *_: pytest.fail("it is known"))
    monkeypatch.setattr(leakage_cache, "has_minhash", lambda: False)
    assert cached(corpus, 0.2) == found
    assert cached(corpus, 0.3) is None  # another split


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "[]",
        '{"units": "documents", "held_out": 1, "copies": 1, "train_share": 0}',
        '{"units": "documents", "held_out": 1, "copies": 2, "train_share": 1}',
        '{"units": "pages", "held_out": 1, "copies": 1, "train_share": 1}',
    ],
)
def test_what_cannot_be_believed_is_looked_for_again(
    damage: str, corpus: Corpus, tmp_path: Path
) -> None:
    found = cached(corpus, 0.2)
    kept_file(tmp_path).write_text(damage)
    assert cached(corpus, 0.2) == found
    assert json.loads(kept_file(tmp_path).read_text())["copies"] == found.copies  # type: ignore[union-attr]


def test_a_cache_that_cannot_be_written_is_done_without(corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    assert cached(corpus, 0.2) is not None


@pytest.mark.parametrize(
    ("leakage", "said"),
    [
        (Leakage("documents", 100, 1, 1.0), None),
        (Leakage("documents", 100, 2, 1.0), "2 of 100 validation documents have a near copy"),
        (Leakage("blocks", 100, 1, 0.5), "about 2.0% of the validation blocks have a near copy"),
        (Leakage("documents", 0, 0, 1.0), None),
    ],
)
def test_more_than_a_hundredth_is_worth_a_warning(leakage: Leakage, said: str | None) -> None:
    warning = leakage_warning(leakage, is_without_copies=False)
    if said is None:
        assert warning is None
    else:
        assert warning is not None
        assert warning.is_warning
        assert warning.text.startswith(said)
