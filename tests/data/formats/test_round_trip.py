"""Texts come back byte for byte, whatever they were written as, and are the same corpus."""

from __future__ import annotations

import lzma
import multiprocessing
import tempfile
from collections.abc import Sequence
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmtrain.data.corpus import Corpus
from llmtrain.data.sources.resolve import resolve_sources
from llmtrain.errors import DataError
from tests.data.making import FORMATS, PACKINGS, SEEKING, tar_of, zip_of

NASTY = [
    "a\r\nb\rc\n",
    '"',
    '",\n"\t',
    "\ufeff\u2028\x1a\x85e\u0301😀",
    " ",
    "\\",
    "\n",
    "x" * 3000,
]
WAYS = [
    *((kind, "") for kind in FORMATS),
    *((kind, packing) for kind in FORMATS if kind not in SEEKING for packing in PACKINGS),
]
TEXTS = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), max_size=8)


def corpus_of(place: str | Path, texts: Sequence[str], kind: str, packing: str = "") -> Corpus:
    data = FORMATS[kind](texts)
    path = Path(place) / f"a{kind.partition('-')[0]}{packing}"
    path.write_bytes(PACKINGS[packing](data) if packing else data)
    return resolve_sources([str(path)])


@pytest.mark.parametrize(("kind", "packing"), WAYS)
@given(texts=TEXTS)
@example(texts=NASTY)
@settings(max_examples=15, deadline=None, database=None)
def test_texts_come_back_as_they_were_written(kind: str, packing: str, texts: list[str]) -> None:
    with tempfile.TemporaryDirectory() as place:
        corpus = corpus_of(place, ["first", *texts], kind, packing)
        read = [document.text for document in corpus.documents()]
    assert read == ["first", *filter(None, texts)]


@pytest.mark.parametrize("packing", ["", *PACKINGS])
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1))
@settings(max_examples=15, deadline=None, database=None)
def test_a_text_file_comes_back_as_it_was_written(packing: str, text: str) -> None:
    data = text.encode()
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / f"a.txt{packing}"
        path.write_bytes(PACKINGS[packing](data) if packing else data)
        (document,) = resolve_sources([str(path)]).documents()
    assert document.text.encode() == data


@pytest.mark.parametrize("kind", [".jsonl", ".json-array", ".parquet", ".feather"])
def test_a_nul_is_text_where_it_can_be_told_from_binary(tmp_path: Path, kind: str) -> None:
    corpus = corpus_of(tmp_path, ["\0a\0"], kind)
    assert [document.text for document in corpus.documents()] == ["\0a\0"]


def test_the_fingerprint_is_of_the_text_alone(tmp_path: Path) -> None:
    assert len({corpus_of(tmp_path, NASTY, *way).measure().fingerprint for way in WAYS}) == 1
    fewer = corpus_of(tmp_path, NASTY[1:], ".parquet")
    assert (
        fewer.measure().fingerprint != corpus_of(tmp_path, NASTY, ".parquet").measure().fingerprint
    )


@pytest.mark.parametrize("packing", PACKINGS)
def test_packed_parts_in_a_row_are_one_text(tmp_path: Path, packing: str) -> None:
    path = tmp_path / f"a.txt{packing}"
    path.write_bytes(PACKINGS[packing](b"one ") + PACKINGS[packing](b"two"))
    assert [document.text for document in resolve_sources([str(path)]).documents()] == ["one two"]


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("at", [0, 1])
def test_a_damaged_part_is_not_taken_for_the_end(tmp_path: Path, packing: str, at: int) -> None:
    """Python's own readers of .bz2 and .xz would leave out all that follows, silently."""
    path, second = tmp_path / f"a.txt{packing}", bytearray(PACKINGS[packing](b"two"))
    second[at] ^= 0x55
    path.write_bytes(PACKINGS[packing](b"one ") + second)
    with pytest.raises(DataError, match="not a complete"):
        list(resolve_sources([str(path)]).documents())


@pytest.mark.parametrize(("zeros", "is_right"), [(0, True), (4, True), (400_000, True), (6, False)])
def test_parts_of_xz_are_apart_by_fours_of_zeros(
    tmp_path: Path, zeros: int, is_right: bool
) -> None:
    path = tmp_path / "a.txt.xz"
    padding = bytes(zeros)
    path.write_bytes(lzma.compress(b"one ") + padding + lzma.compress(b"two") + padding)
    if is_right:
        corpus = resolve_sources([str(path)])
        assert [document.text for document in corpus.documents()] == ["one two"]
        return
    with pytest.raises(DataError, match="6 zeros follow"):
        list(resolve_sources([str(path)]).documents())


@pytest.mark.parametrize("read_bytes", [1, 2, 3, 7, 1 << 20])
@pytest.mark.parametrize("kind", [".json-array", ".json-strings", ".json-objects"])
def test_json_is_read_alike_wherever_a_read_ends(
    tmp_path: Path, kind: str, read_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmtrain.data.formats.json_text._READ_BYTES", read_bytes)
    corpus = corpus_of(tmp_path, NASTY, kind)
    assert [document.text for document in corpus.documents()] == NASTY


def read_by_another(corpus: Corpus) -> tuple[Corpus, str]:
    return corpus, corpus.measure().fingerprint


def test_a_corpus_is_names_that_travel_to_another_process(tmp_path: Path) -> None:
    for number, way in enumerate(WAYS):
        (tmp_path / str(number)).mkdir()
        corpus_of(tmp_path / str(number), [*NASTY, "z" * 100_000], *way)
    corpus = resolve_sources([str(tmp_path)])
    assert len(corpus.sources[0].files) == len(WAYS)
    assert len(ForkingPickler.dumps(corpus)) < 10_000
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(read_by_another, (corpus,)) == (corpus, corpus.measure().fingerprint)


@pytest.mark.parametrize("kind", [".json-array", ".csv", ".parquet", ".feather"])
def test_the_place_of_a_record_is_its_line_or_number(tmp_path: Path, kind: str) -> None:
    corpus = corpus_of(tmp_path, ["a", "", "b\nb", "c"], kind)
    places = [d.origin.removeprefix(f"{tmp_path}/a") for d in corpus.documents()]
    suffix = kind.partition("-")[0]
    if kind == ".csv":
        assert places == [".csv:2", ".csv:4", ".csv:6"]
    else:
        assert places == [f"{suffix}[0]", f"{suffix}[2]", f"{suffix}[3]"]


@pytest.mark.parametrize("archive", [zip_of, tar_of], ids=["zip", "tar"])
def test_every_format_that_streams_is_read_in_an_archive(tmp_path: Path, archive: object) -> None:
    members = {
        f"{number}/a{kind.partition('-')[0]}{packing}": PACKINGS[packing](FORMATS[kind](NASTY))
        for number, kind in enumerate(FORMATS)
        if kind not in SEEKING and kind != ".tar"
        for packing in PACKINGS
    }
    assert callable(archive)
    path = tmp_path / ("a.zip" if archive is zip_of else "a.tar")
    path.write_bytes(archive(members))
    corpus = resolve_sources([str(path)])
    assert [document.text for document in corpus.documents()] == NASTY * len(members)
    assert corpus.skipped == ()
