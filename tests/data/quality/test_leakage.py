from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmtrain.data.corpus import Corpus
from llmtrain.data.quality import leakage as leakage_module
from llmtrain.data.quality.leakage import Leakage, find_leakage
from llmtrain.data.sources.resolve import resolve_sources
from llmtrain.data.split import plan_split
from tests.benchmarks.near_duplicates import invented


def go_on() -> None:
    """Nobody stops these tests."""


def corpus_of(directory: Path, texts: list[str]) -> Corpus:
    path = directory / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return resolve_sources([str(path)])


def leakage_of(corpus: Corpus, fraction: float = 0.1) -> Leakage:
    return find_leakage(corpus, corpus.measure(), fraction, go_on)


def test_unrelated_documents_do_not_leak(tmp_path: Path) -> None:
    found = leakage_of(corpus_of(tmp_path, list(invented(300, seed=1))))
    assert (found.units, found.copies, found.share, found.train_share) == ("documents", 0, 0, 1)
    assert 10 < found.held_out < 60


def test_equal_documents_are_on_one_side(tmp_path: Path) -> None:
    assert leakage_of(corpus_of(tmp_path, 2 * list(invented(200, seed=1)))).copies == 0


def test_each_held_out_copy_is_counted(tmp_path: Path) -> None:
    originals = list(invented(300, seed=1))
    copies = [text.replace(" ", "\n") for text in originals]
    corpus = corpus_of(tmp_path, originals + copies)
    facts = corpus.measure()
    split = plan_split(corpus, facts, 0.1)
    side = {piece.document.text: piece.side for piece in split.assign(corpus.documents())}
    pairs = [(side[a], side[b]) for a, b in zip(originals, copies, strict=True)]
    expected = sum(set(pair) == {"train", "validation"} for pair in pairs)

    found = find_leakage(corpus, facts, 0.1, go_on)

    assert expected > 20
    assert found.copies == expected
    assert found.share == expected / found.held_out


def test_a_sample_says_about_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    originals = list(invented(600, seed=1))
    corpus = corpus_of(tmp_path, originals + [text.replace(" ", "\n") for text in originals])
    whole = leakage_of(corpus)
    monkeypatch.setattr(leakage_module, "_MOST_UNITS", 400)
    sample = leakage_of(corpus)
    assert sample.train_share < 0.5
    assert sample.copies < whole.copies
    assert abs(sample.share - whole.share) < 0.25

    monkeypatch.setattr(leakage_module, "_MOST_UNITS", 50)  # of either side
    assert 25 < leakage_of(corpus).held_out < 75 < whole.held_out


def test_few_documents_are_compared_by_blocks(tmp_path: Path) -> None:
    lines = "\n".join(invented(150, seed=3)).splitlines(keepends=True)
    (tmp_path / "once.txt").write_text("".join(lines))
    half, more = lines[: len(lines) // 2], lines[-len(lines) // 18 :]  # else both are held out
    (tmp_path / "twice.txt").write_text("".join([*half, *more, *half]))
    once = leakage_of(resolve_sources([str(tmp_path / "once.txt")]))
    twice = leakage_of(resolve_sources([str(tmp_path / "twice.txt")]))
    assert (once.units, once.copies) == ("blocks", 0)
    assert twice.share > 0.8


def test_document_has_its_share() -> None:
    assert Leakage("documents", 10, 2, 0.5).document() == {
        "units": "documents",
        "held_out": 10,
        "copies": 2,
        "train_share": 0.5,
        "share": 0.4,
    }
