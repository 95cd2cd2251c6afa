from __future__ import annotations

import dataclasses
import json
import math
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmtrain.data import shards
from llmtrain.data.encoding import TextEncoder
from llmtrain.data.index import INDEX_NAME, write_index
from llmtrain.data.shards import PreparedData, open_prepared
from llmtrain.data.stream import TokenStream
from llmtrain.errors import DataError, InterruptedRunError, LlmtrainError

TEXTS = [f"document {number}\r\n" + "é😀 \n" * (number % 7) for number in range(250)]


@pytest.fixture
def corpus_file(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    return path


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_bytes("".join(f"line {number} of é😀\r\n" for number in range(3000)).encode())
    return path


def documents(stream: TokenStream, encoder: TextEncoder) -> list[str]:
    """Decoded, after checking that separators stand where they have to."""
    ids = stream.read(0, stream.num_tokens)
    borders = np.flatnonzero(ids == encoder.separator_id)
    assert borders[0] == 0
    assert borders[-1] == len(ids) - 1
    pairs = pairwise(borders)
    return [encoder.decode(ids[start + 1 : end].tolist()) for start, end in pairs]


def entries(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "shards").iterdir())


@pytest.mark.parametrize("shard_bytes", [2, 1001, 1 << 20])
@pytest.mark.parametrize("batch_bytes", [100, 1 << 20])
def test_every_document_comes_back_byte_for_byte(
    corpus_file: Path, prepare_data: Any, encoder: Any, shard_bytes: int, batch_bytes: int
) -> None:
    if shard_bytes == 2:
        corpus_file.write_text('{"text": "ab\\n"}\n{"text": "é"}\n')
    with prepare_data(
        corpus_file, encoder, shard_bytes=shard_bytes, batch_bytes=batch_bytes
    ) as data:
        both = documents(data.train, encoder) + documents(data.validation, encoder)
        index = data.index
    expected = TEXTS if shard_bytes > 2 else ["ab\n", "é"]
    if shard_bytes > 2:
        assert Counter(both) == Counter(expected)
        assert index.train.documents + index.validation.documents == len(TEXTS)
    text_bytes = len("".join(expected).encode())
    assert index.train.text_bytes + index.validation.text_bytes == text_bytes
    assert len("".join(both).encode()) == text_bytes


@pytest.mark.parametrize("batch_bytes", [64, 5000, 1 << 20])
def test_a_book_comes_back_whatever_the_batches(
    book: Path, prepare_data: Any, encoder: Any, batch_bytes: int
) -> None:
    with prepare_data(book, encoder, batch_bytes=batch_bytes) as data:
        train = documents(data.train, encoder)
        validation = documents(data.validation, encoder)
        assert data.index.train.documents == len(train)
        assert data.index.validation.documents == len(validation) == 10
    pairs = [text for pair in zip(train, validation, strict=False) for text in pair]
    assert "".join(pairs + train[len(validation) :]).encode() == book.read_bytes()


def test_shards_are_full_but_for_the_last(book: Path, prepare_data: Any) -> None:
    with prepare_data(book, shard_bytes=1001) as data:
        sizes = [shard.size_bytes for shard in data.index.train.shards]
        assert set(sizes[:-1]) == {1000}
        assert 0 < sizes[-1] <= 1000
        assert sum(sizes) == 2 * data.index.train.tokens == 2 * data.train.num_tokens


def test_shard_size_does_not_change_the_tokens(
    book: Path, prepare_data: Any, cache: Path, encoder: Any
) -> None:
    with prepare_data(book, shard_bytes=1000) as data:
        small = data.train.read(0, data.train.num_tokens)
    shutil.rmtree(cache)
    with prepare_data(book) as data:
        assert data.train.read(0, data.train.num_tokens).tolist() == small.tolist()


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(65_536, "uint16"), (65_537, "uint32"), (200_000, "uint32")]
)
def test_width_follows_the_vocabulary(
    book: Path, prepare_data: Any, make_encoder: Any, vocab_size: int, dtype: str
) -> None:
    encoder = make_encoder(first_id=vocab_size - 257, vocab_size=vocab_size)
    with prepare_data(book, encoder) as data:
        assert data.index.dtype == dtype
        text = "".join(documents(data.train, encoder) + documents(data.validation, encoder))
    assert len(text.encode()) == book.stat().st_size


@pytest.mark.parametrize("vocab_size", [256, 250])
def test_ids_outside_the_vocabulary_are_refused(
    book: Path, prepare_data: Any, make_encoder: Any, cache: Path, vocab_size: int
) -> None:
    with pytest.raises(DataError, match=f"vocabulary is {vocab_size}"):
        prepare_data(book, make_encoder(vocab_size=vocab_size))
    assert not cache.exists() or entries(cache) == []


def test_an_id_outside_the_vocabulary_names_its_document(
    corpus_file: Path, prepare_data: Any, make_encoder: Any, cache: Path
) -> None:
    class Wrong(make_encoder):  # type: ignore[misc]
        def encode_batch(self, texts: list[str], threads: int) -> list[list[int]]:
            return [[-1 if "document 37\r" in text else 0] for text in texts]

    with pytest.raises(DataError, match=r"id -1 for .*corpus\.jsonl:38"):
        prepare_data(corpus_file, Wrong())
    assert entries(cache) == []


def test_progress_ends_at_the_total(book: Path, prepare_data: Any) -> None:
    seen: list[tuple[int, int]] = []
    prepare_data(
        book, batch_bytes=5000, on_progress=lambda done, total: seen.append((done, total))
    ).close()
    size = book.stat().st_size
    assert seen == sorted(seen)
    assert len(seen) > 5
    assert {total for _, total in seen} == {size}
    assert seen[-1] == (size, size)


def test_the_cache_is_used_until_something_changes(
    book: Path, prepare_data: Any, make_encoder: Any, cache: Path
) -> None:
    encoder = make_encoder()

    def is_encoded(**options: float) -> bool:
        encoder.calls = 0
        prepare_data(book, encoder, **options).close()
        return bool(encoder.calls)

    assert is_encoded()
    assert not is_encoded()
    assert is_encoded(validation_fraction=0.2)
    encoder.fingerprint = "another"
    assert is_encoded()
    os.utime(book, (0, 0))
    assert not is_encoded()
    book.write_bytes(book.read_bytes() + b"\n")
    assert is_encoded()
    assert len(entries(cache)) == 4


def test_the_text_is_not_needed_any_more(book: Path, prepare_data: Any) -> None:
    prepared = prepare_data(book)
    prepared.close()
    book.unlink()
    with open_prepared(prepared.directory) as data:
        data.verify()
        assert data.index == prepared.index
        assert data.train.num_tokens == data.index.train.tokens


@pytest.mark.parametrize("error", [InterruptedRunError("stop"), KeyboardInterrupt()])
@pytest.mark.parametrize("calls", [0, 1, 2, 5])
def test_an_interrupted_build_leaves_nothing_and_can_be_rerun(
    book: Path, prepare_data: Any, encoder: Any, cache: Path, error: BaseException, calls: int
) -> None:
    left = iter([None] * calls)

    def check_stop() -> None:
        try:
            next(left)
        except StopIteration:
            raise error from None

    with pytest.raises(type(error)):
        prepare_data(book, batch_bytes=5000, check_stop=check_stop)
    assert not cache.exists() or entries(cache) == []
    with prepare_data(book, encoder) as data:
        data.verify()
    assert encoder.calls


@pytest.mark.parametrize("name", ["fsync", "rename", "write_index"])
def test_a_failing_disk_leaves_nothing(
    book: Path, prepare_data: Any, cache: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    owner = {"fsync": os, "rename": Path, "write_index": shards}[name]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        with pytest.raises(LlmtrainError, match="No space left") as caught:
            prepare_data(book)
    assert caught.value.exit_code == 1
    assert entries(cache) == []
    prepare_data(book).close()


def test_text_that_changes_meanwhile_is_noticed(book: Path, prepare_data: Any, cache: Path) -> None:
    calls = iter(range(10))

    def check_stop() -> None:
        if next(calls) == 0:
            book.write_bytes(book.read_bytes().replace(b"line 7 ", b"line 8 "))

    with pytest.raises(DataError, match="changed while"):
        prepare_data(book, check_stop=check_stop)
    assert entries(cache) == []


def test_another_process_that_finished_first_is_used(
    book: Path, prepare_data: Any, cache: Path
) -> None:
    finished: list[PreparedData] = []

    def race(done: int, total: int) -> None:
        if not finished:
            finished.append(prepare_data(book))

    with prepare_data(book, on_progress=race) as data:
        data.verify()
        assert data.directory == finished[0].directory
    finished[0].close()
    assert entries(cache) == [data.index.key]


def test_scratch_of_a_killed_process_is_removed_after_a_day(
    book: Path, prepare_data: Any, cache: Path
) -> None:
    for name, age_s in [("old", 2 * 86_400), ("recent", 60)]:
        scratch = cache / "shards" / f".building-{name}"
        scratch.mkdir(parents=True)
        (scratch / "train-00000.bin").write_bytes(b"x")
        then = scratch.stat().st_mtime - age_s
        os.utime(scratch / "train-00000.bin", (then, then))
        os.utime(scratch, (then, then))
    prepared = prepare_data(book)
    prepared.close()
    assert entries(cache) == [".building-recent", prepared.index.key]


def change_index(directory: Path, **changes: object) -> None:
    record = json.loads((directory / INDEX_NAME).read_text())
    (directory / INDEX_NAME).write_text(json.dumps({**record, **changes}))


def set_first_shard(directory: Path, **changes: object) -> None:
    record = json.loads((directory / INDEX_NAME).read_text())
    record["train"]["shards"][0].update(changes)
    (directory / INDEX_NAME).write_text(json.dumps(record))


def edit_shard(directory: Path, edit: Callable[[bytes], bytes]) -> None:
    path = directory / "train-00000.bin"
    path.write_bytes(edit(path.read_bytes()))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no index": (lambda d: (d / INDEX_NAME).unlink(), INDEX_NAME),
    "cut index": (lambda d: (d / INDEX_NAME).write_text("{"), INDEX_NAME),
    "index is no text": (lambda d: (d / INDEX_NAME).write_bytes(b"\xff\xfe\xfd"), INDEX_NAME),
    "index is a list": (lambda d: (d / INDEX_NAME).write_text("[]"), INDEX_NAME),
    "version": (lambda d: change_index(d, format_version=99), "format_version is 99"),
    "extra field": (lambda d: change_index(d, more=1), "more"),
    "wrong type": (lambda d: change_index(d, vocab_size="257"), "vocab_size"),
    "boolean number": (lambda d: change_index(d, separator_id=True), "separator_id"),
    "negative": (lambda d: change_index(d, separator_id=-1), "separator_id"),
    "separator": (lambda d: change_index(d, separator_id=257), "separator_id"),
    "dtype": (lambda d: change_index(d, dtype="uint32"), "dtype"),
    "vocabulary": (lambda d: change_index(d, vocab_size=100_000), "dtype"),
    "path traversal": (lambda d: set_first_shard(d, name="../train-00000.bin"), "not the name"),
    "other side": (lambda d: set_first_shard(d, name="validation-00000.bin"), "not the name"),
    "size in index": (lambda d: set_first_shard(d, size_bytes=2), "tokens in"),
    "no shard": (lambda d: (d / "train-00000.bin").unlink(), "train-00000.bin"),
    "empty shard": (lambda d: edit_shard(d, lambda data: b""), "train-00000.bin"),
    "odd size": (lambda d: edit_shard(d, lambda data: data[:-1]), "not a whole number"),
    "short shard": (lambda d: edit_shard(d, lambda data: data[:-2]), "train-00000.bin"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_on_opening_and_repaired_by_preparing(
    book: Path, prepare_data: Any, cache: Path, name: str
) -> None:
    damage, said = DAMAGE[name]
    prepared = prepare_data(book)
    prepared.close()
    damage(prepared.directory)
    with pytest.raises(DataError, match=said):
        open_prepared(prepared.directory)
    with prepare_data(book) as data:
        data.verify()
        assert data.index == prepared.index
    assert entries(cache) == [data.index.key]


def test_a_flipped_bit_is_named_and_repaired(book: Path, prepare_data: Any) -> None:
    prepared = prepare_data(book)
    prepared.close()
    path = prepared.directory / "validation-00000.bin"
    intact = path.read_bytes()
    random_bits = random.Random(0)
    for _ in range(10):
        damaged = bytearray(intact)
        damaged[random_bits.randrange(len(intact))] ^= 1 << random_bits.randrange(8)
        path.write_bytes(damaged)
        with (
            open_prepared(prepared.directory) as data,
            pytest.raises(DataError, match=r"validation-00000\.bin is damaged"),
        ):
            data.verify()
    prepare_data(book).close()
    assert path.read_bytes() == intact


def test_unigram_baseline_is_the_cross_entropy(book: Path, prepare_data: Any) -> None:
    with prepare_data(book) as data:
        train = Counter(data.train.read(0, data.train.num_tokens).tolist())
        validation = data.validation.read(0, data.validation.num_tokens).tolist()
        total = train.total() + data.index.vocab_size
        nats = [-math.log((train[token] + 1) / total) for token in validation]
        expected = sum(nats) / len(nats)
        assert data.index.unigram_cross_entropy_nats == pytest.approx(expected, rel=1e-12)


def test_index_survives_being_written_and_read(book: Path, prepare_data: Any) -> None:
    prepared = prepare_data(book)
    prepared.close()
    changed = dataclasses.replace(prepared.index, encoder_fingerprint='é"\\')
    write_index(prepared.directory, changed)
    with open_prepared(prepared.directory) as data:
        assert data.index == changed
