"""Whoever reads a corpus can tell how far that is."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from llmtrain.data.sources.resolve import resolve_sources

MEBIBYTE = 1 << 20


@pytest.fixture
def corpus_bytes(tmp_path: Path) -> int:
    """Three files, one of them packed; their bytes on the disk."""
    lines = [json.dumps({"text": f"{number} " * 2000}) for number in range(500)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "b.txt").write_text("short", encoding="utf-8")
    noise = "".join(chr(0x4E00 + (number * 7919) % 20000) for number in range(1_500_000))
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(noise.encode(), 1))
    return sum(path.stat().st_size for path in tmp_path.iterdir())


def test_every_mebibyte_is_told_and_never_more_than_there_is(
    tmp_path: Path, corpus_bytes: int
) -> None:
    told: list[tuple[int, int]] = []
    corpus = resolve_sources([str(tmp_path)])
    watched = replace(corpus, on_read=lambda done, total: told.append((done, total)))
    assert list(watched.documents()) == list(corpus.documents())
    done = [each for each, _ in told]
    assert {total for _, total in told} == {corpus_bytes}
    assert all(later - earlier >= MEBIBYTE for earlier, later in pairwise(done))
    assert len(done) >= corpus_bytes // MEBIBYTE - 2
    assert corpus_bytes - MEBIBYTE < done[-1] <= corpus_bytes


def test_who_watches_makes_no_other_corpus(tmp_path: Path, corpus_bytes: int) -> None:
    assert corpus_bytes
    corpus = resolve_sources([str(tmp_path)])
    assert replace(corpus, on_read=print) == corpus
