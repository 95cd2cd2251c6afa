from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtrain.data.corpus import Corpus
from llmtrain.data.corpus_stats import FingerprintBuilder
from llmtrain.data.document import Document
from llmtrain.data.sources.resolve import resolve_sources
from llmtrain.data.split import BlockSplit, DocumentSplit, SplitPart, cut_at_line_ends, plan_split
from llmtrain.errors import DataError, UsageError

CORPORA = st.lists(st.text(min_size=1, max_size=30), min_size=1, max_size=130)


def corpus_of(directory: Path, texts: list[str]) -> Corpus:
    path = directory / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return resolve_sources([str(path)])


def split_of(corpus: Corpus, fraction: float) -> list[SplitPart]:
    return list(plan_split(corpus, corpus.measure(), fraction).assign(corpus.documents()))


def side(pieces: list[SplitPart], name: str) -> list[str]:
    return [piece.document.text for piece in pieces if piece.side == name]


def size_bytes(texts: list[str]) -> int:
    return len("".join(texts).encode())


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("split")


@settings(deadline=None)
@given(CORPORA, st.floats(0.0001, 0.9999))
def test_nothing_is_lost_and_no_side_is_empty(
    scratch: Path, texts: list[str], fraction: float
) -> None:
    corpus = corpus_of(scratch, texts)
    if len("".join(texts)) < 2:
        with pytest.raises(DataError, match="cannot be split"):
            split_of(corpus, fraction)
        return
    pieces = split_of(corpus, fraction)
    assert "".join(piece.document.text for piece in pieces) == "".join(texts)
    assert side(pieces, "train")
    assert side(pieces, "validation")


def test_many_documents_are_kept_whole_and_do_not_leak(tmp_path: Path) -> None:
    texts = [f"document {number % 300}\nsecond line\n" for number in range(1000)]
    pieces = split_of(corpus_of(tmp_path, texts), 0.1)
    train, validation = set(side(pieces, "train")), set(side(pieces, "validation"))
    assert train | validation == set(texts)
    assert not train & validation
    assert 0.04 < len(validation) / 300 < 0.16


def test_order_of_documents_does_not_matter(tmp_path: Path) -> None:
    texts = [f"document {number}" for number in range(400)]
    shuffled = random.Random(0).sample(texts, len(texts))
    one = side(split_of(corpus_of(tmp_path, texts), 0.05), "validation")
    other = side(split_of(corpus_of(tmp_path, shuffled), 0.05), "validation")
    assert set(one) == set(other)


def test_a_larger_fraction_holds_out_more_of_the_same(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, [f"document {number}" for number in range(400)])
    few, many = (set(side(split_of(corpus, f), "validation")) for f in (0.02, 0.2))
    assert few < many


@pytest.mark.parametrize(("fraction", "held_out"), [(1e-9, 1), (1 - 1e-9, 199)])
def test_extreme_fractions_leave_one_document(
    tmp_path: Path, fraction: float, held_out: int
) -> None:
    corpus = corpus_of(tmp_path, [f"document {number}" for number in range(200)])
    pieces = split_of(corpus, fraction)
    assert len(side(pieces, "validation")) == held_out


def test_equal_documents_are_split_by_blocks(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, ["the same\n"] * 150)
    assert isinstance(plan_split(corpus, corpus.measure(), 0.1), BlockSplit)
    assert len(side(split_of(corpus, 0.1), "validation")) == 15


def test_which_split_is_used(tmp_path: Path) -> None:
    for count, kind in [(99, BlockSplit), (100, DocumentSplit)]:
        corpus = corpus_of(tmp_path, [f"document {number}" for number in range(count)])
        assert isinstance(plan_split(corpus, corpus.measure(), 0.1), kind)


@pytest.mark.parametrize("fraction", [0.01, 0.05, 0.1, 0.5])
def test_blocks_hold_out_the_fraction_in_whole_lines_from_everywhere(
    tmp_path: Path, fraction: float
) -> None:
    lines = [f"line {number:05d} of a book é\n" for number in range(5000)]
    path = tmp_path / "book.txt"
    path.write_bytes("".join(lines).encode())
    pieces = split_of(resolve_sources([str(path)]), fraction)
    held_out = side(pieces, "validation")
    assert size_bytes(held_out) / path.stat().st_size == pytest.approx(fraction, rel=0.05)
    assert all(piece.document.text.endswith("\n") for piece in pieces)
    assert all(piece.document.text.startswith("line ") for piece in pieces)
    starts = [int(text[5:10]) / 5000 for text in held_out]
    expected = [(number + 0.5) / len(starts) for number in range(len(starts))]
    assert starts == pytest.approx(expected, abs=0.03)


def test_one_very_long_line_is_cut_between_characters(tmp_path: Path) -> None:
    path = tmp_path / "line.txt"
    path.write_bytes(("é😀x" * 5000).encode())
    pieces = split_of(resolve_sources([str(path)]), 0.1)
    assert "".join(piece.document.text for piece in pieces) == "é😀x" * 5000
    share = size_bytes(side(pieces, "validation")) / path.stat().st_size
    assert share == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 2.0, float("nan")])
def test_a_fraction_that_is_none_is_refused(tmp_path: Path, fraction: float) -> None:
    corpus = corpus_of(tmp_path, ["some text\n", "more\n"])
    with pytest.raises(UsageError, match="validation_fraction"):
        plan_split(corpus, corpus.measure(), fraction)


@settings(deadline=None)
@given(st.text(alphabet="a\né😀", max_size=200), st.integers(1, 40), st.integers(0, 40))
def test_cutting_loses_nothing(text: str, target_bytes: int, more_bytes: int) -> None:
    pieces = list(cut_at_line_ends(text.encode(), target_bytes, target_bytes + more_bytes))
    assert "".join(piece.decode() for piece in pieces) == text
    assert all(target_bytes <= len(piece) for piece in pieces[:-1])
    assert all(len(piece) <= target_bytes + max(more_bytes, 3) for piece in pieces)


def test_digest_is_of_the_text_alone() -> None:
    assert Document("x", "here").digest() == Document("x", "there").digest()


def test_parts_of_a_text_are_told_from_documents() -> None:
    """They are split in another way, and so have shards of their own."""
    found = []
    for part_at in (None, 0):
        builder = FingerprintBuilder()
        builder.add(Document("some text", "a.txt", part_at))
        found.append(builder.hexdigest())
    assert found[0] != found[1]
