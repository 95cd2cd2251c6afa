from __future__ import annotations

import json
import math
import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from llmtrain.data.shards.cache_entry import entry_lock
from llmtrain.data.shards.encode import TextEncoder
from llmtrain.data.shards.prepared import PreparedData, open_prepared
from llmtrain.data.shards.token_stream import TokenStream
from llmtrain.errors import DataError, InterruptedRunError
from tests.data.conftest import ByteEncoder, Prepare

Entries = Callable[[], list[str]]
TEXTS = [f"document {number}\r\n" + "é😀 \n" * (number % 7) for number in range(250)]


@pytest.fixture
def corpus_file(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    return path


def documents(stream: TokenStream, encoder: TextEncoder) -> list[str]:
    """Decoded, after checking that separators stand where they have to."""
    ids = stream.read(0, stream.num_tokens)
    borders = np.flatnonzero(ids == encoder.separator_id)
    assert borders[0] == 0
    assert borders[-1] == len(ids) - 1
    texts = (ids[start + 1 : end].tolist() for start, end in pairwise(borders))
    return [encoder.decode(text) for text in texts]


@pytest.mark.parametrize("shard_bytes", [1001, 1 << 20])
@pytest.mark.parametrize("batch_bytes", [100, 1 << 20])
def test_every_document_comes_back_byte_for_byte(
    corpus_file: Path,
    prepare_data: Prepare,
    encoder: ByteEncoder,
    shard_bytes: int,
    batch_bytes: int,
) -> None:
    options = {"shard_bytes": shard_bytes, "batch_bytes": batch_bytes}
    with prepare_data(corpus_file, encoder, **options) as data:
        both = documents(data.train, encoder) + documents(data.validation, encoder)
        train, validation = data.index.train, data.index.validation
    assert Counter(both) == Counter(TEXTS)
    assert train.documents + validation.documents == len(TEXTS)
    assert train.text_bytes + validation.text_bytes == len("".join(TEXTS).encode())


def test_a_shard_may_be_a_single_token(
    tmp_path: Path, prepare_data: Prepare, encoder: ByteEncoder
) -> None:
    path = tmp_path / "tiny.txt"
    path.write_bytes("ab\né".encode())
    with prepare_data(path, encoder, shard_bytes=2) as data:
        both = documents(data.train, encoder) + documents(data.validation, encoder)
        assert len(data.index.train.shards) == data.train.num_tokens
    assert Counter("".join(both)) == Counter("ab\né")


@pytest.mark.parametrize("batch_bytes", [64, 5000, 1 << 20])
def test_a_book_comes_back_whatever_the_batches(
    book: Path, prepare_data: Prepare, encoder: ByteEncoder, batch_bytes: int
) -> None:
    with prepare_data(book, encoder, batch_bytes=batch_bytes) as data:
        train = documents(data.train, encoder)
        validation = documents(data.validation, encoder)
        assert data.index.train.documents == len(train)
        assert data.index.validation.documents == len(validation) == 10
    pairs = [text for pair in zip(train, validation, strict=False) for text in pair]
    assert "".join(pairs + train[len(validation) :]).encode() == book.read_bytes()


def test_shards_are_full_but_for_the_last(book: Path, prepare_data: Prepare) -> None:
    with prepare_data(book, shard_bytes=1001) as data:
        sizes = [shard.size_bytes for shard in data.index.train.shards]
        assert set(sizes[:-1]) == {1000}
        assert 0 < sizes[-1] <= 1000
        assert sum(sizes) == 2 * data.index.train.tokens == 2 * data.train.num_tokens


def test_shard_size_does_not_change_the_tokens(
    book: Path, prepare_data: Prepare, cache: Path, encoder: ByteEncoder
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
    book: Path, prepare_data: Prepare, make_encoder: type[ByteEncoder], vocab_size: int, dtype: str
) -> None:
    encoder = make_encoder(first_id=vocab_size - 257, vocab_size=vocab_size)
    with prepare_data(book, encoder) as data:
        assert data.index.dtype == dtype
        text = "".join(documents(data.train, encoder) + documents(data.validation, encoder))
    assert len(text.encode()) == book.stat().st_size


@pytest.mark.parametrize("vocab_size", [256, 250])
def test_ids_outside_the_vocabulary_are_refused(
    book: Path,
    prepare_data: Prepare,
    make_encoder: type[ByteEncoder],
    entries: Entries,
    vocab_size: int,
) -> None:
    with pytest.raises(DataError, match=f"vocabulary is {vocab_size}"):
        prepare_data(book, make_encoder(vocab_size=vocab_size))
    assert entries() == []


def test_an_id_outside_the_vocabulary_names_its_document(
    corpus_file: Path, prepare_data: Prepare, make_encoder: type[ByteEncoder], entries: Entries
) -> None:
    class Wrong(make_encoder):  # type: ignore[misc]
        def encode_batch(self, texts: list[str], threads: int) -> list[list[int]]:
            return [[-1 if "document 37\r" in text else 0] for text in texts]

    with pytest.raises(DataError, match=r"id -1 for .*corpus\.jsonl:38"):
        prepare_data(corpus_file, Wrong())
    assert entries() == []


def test_progress_ends_at_the_total(book: Path, prepare_data: Prepare) -> None:
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
    book: Path, prepare_data: Prepare, make_encoder: type[ByteEncoder], entries: Entries
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
    assert len(entries()) == 4


def test_the_text_is_not_needed_any_more(book: Path, prepare_data: Prepare) -> None:
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
    book: Path,
    prepare_data: Prepare,
    encoder: ByteEncoder,
    entries: Entries,
    error: BaseException,
    calls: int,
) -> None:
    left = iter([None] * calls)

    def check_stop() -> None:
        try:
            next(left)
        except StopIteration:
            raise error from None

    with pytest.raises(type(error)):
        prepare_data(book, batch_bytes=5000, check_stop=check_stop)
    assert entries() == []
    with prepare_data(book, encoder) as data:
        data.verify()
    assert encoder.calls


def test_text_that_changes_meanwhile_is_noticed(
    book: Path, prepare_data: Prepare, entries: Entries
) -> None:
    calls = iter(range(10))

    def check_stop() -> None:
        if next(calls) == 0:
            book.write_bytes(book.read_bytes().replace(b"line 7 ", b"line 8 "))

    with pytest.raises(DataError, match="changed while"):
        prepare_data(book, check_stop=check_stop)
    assert entries() == []


def test_what_another_process_prepares_is_waited_for(
    book: Path, prepare_data: Prepare, encoder: ByteEncoder, entries: Entries
) -> None:
    is_waiting = threading.Event()
    second: list[Future[PreparedData]] = []

    def race(done: int, total: int) -> None:
        if not second:
            second.append(
                threads.submit(prepare_data, book, encoder, on_wait=lambda: is_waiting.set())
            )
            assert is_waiting.wait(timeout=60)

    with (
        ThreadPoolExecutor(1) as threads,
        prepare_data(book, on_progress=race) as data,
        second[0].result(timeout=60) as other,
    ):
        other.verify()
        assert other.directory == data.directory
    assert encoder.calls == 0
    assert entries() == [data.index.key]


def test_waiting_can_be_stopped(book: Path, prepare_data: Prepare, cache: Path) -> None:
    prepared = prepare_data(book)
    prepared.close()
    shutil.rmtree(prepared.directory)
    told: list[bool] = []

    def stop() -> None:
        if told:
            raise InterruptedRunError("stop")

    with entry_lock(cache, prepared.index.key), pytest.raises(InterruptedRunError):
        prepare_data(book, check_stop=stop, on_wait=lambda: told.append(True))
    assert told == [True]


def test_unigram_baseline_is_the_cross_entropy(book: Path, prepare_data: Prepare) -> None:
    with prepare_data(book) as data:
        train = Counter(data.train.read(0, data.train.num_tokens).tolist())
        validation = data.validation.read(0, data.validation.num_tokens).tolist()
        total = train.total() + data.index.vocab_size
        nats = [-math.log((train[token] + 1) / total) for token in validation]
        expected = sum(nats) / len(nats)
        assert data.index.unigram_cross_entropy_nats == pytest.approx(expected, rel=1e-12)
