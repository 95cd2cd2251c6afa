"""The same shards, whoever encodes them and however often the work was interrupted."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Generator, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from llmtrain.data.shards.encode import Encode, Encoded
from llmtrain.data.shards.index import INDEX_NAME
from llmtrain.data.shards.journal import JOURNAL_NAME
from llmtrain.data.shards.manifest import MANIFEST_NAME, read_manifest
from llmtrain.data.shards.prepared import PreparedData, open_prepared
from llmtrain.errors import DataError, InterruptedRunError
from llmtrain.tokenizer import Tokenizer
from llmtrain.tokenizer.encode_processes import encode_in_processes, encode_in_this_process
from tests.data.conftest import ByteEncoder, Prepare
from tests.data.fixed import TOKENIZER, write_fixed
from tests.shards import encode_here

# sha256 of names and contents of the fixed corpus's shards and index, as version 0.2.0 made them.
RECORDED = {
    "many.jsonl": "057af5a0037af8adb1c9d60ad65747199f57fc3f67da2bf988cd6014d8d80ed2",
    "book.txt": "579f2c6af9e874cf1513dee12697e1ce9de7628e851439b4af5f15e5aa264131",
}
UNITS = {"shard_bytes": 20_000, "batch_bytes": 5000, "journal_bytes": 10_000}


def contents(data: PreparedData) -> str:
    """Of all files that readers depend on, but for a float whose last digit was the CPU's."""
    digest = hashlib.sha256()
    for path in sorted(data.directory.iterdir()):
        content = path.read_bytes()
        if path.name == INDEX_NAME:
            index = json.loads(content)
            del index["unigram_cross_entropy_nats"]
            content = json.dumps(index, indent=2).encode()
        if path.name != MANIFEST_NAME:
            digest.update(f"{path.name} {hashlib.sha256(content).hexdigest()}\n".encode())
    return digest.hexdigest()


@pytest.fixture(params=["many.jsonl", "book.txt"])
def corpus(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    write_fixed(tmp_path)
    return tmp_path / str(request.param)


def by_processes(tokenizer: Tokenizer, count: int) -> Encode:
    if count == 0:
        return encode_here(tokenizer, 2)
    if count == 1:
        return partial(encode_in_this_process, tokenizer)
    return partial(encode_in_processes, TOKENIZER, tokenizer.fingerprint, count, lambda: None)


@pytest.mark.parametrize("processes", [0, 1, 2, 3])
def test_shards_are_those_of_earlier_versions_whoever_encodes(
    corpus: Path, prepare_data: Prepare, processes: int
) -> None:
    tokenizer = Tokenizer.load(TOKENIZER)
    options = {**UNITS, "encode": by_processes(tokenizer, processes)}
    with prepare_data(corpus, tokenizer, **options) as data:
        assert contents(data) == RECORDED[corpus.name]


class Stopping:
    """Encodes until so many batches are done, and counts bytes; None: to the end."""

    def __init__(self, encoder: ByteEncoder, batches: int | None, error: BaseException) -> None:
        self.bytes = 0
        self._encode = encode_here(encoder)
        self._batches = batches
        self._error = error

    def __call__(self, batches: Iterable[Sequence[bytes]]) -> Generator[Encoded, None, None]:
        for number, batch in enumerate(batches):
            if number == self._batches:
                raise self._error
            self.bytes += sum(map(len, batch))
            yield from self._encode([batch])


Interrupt = Callable[..., Stopping]


@pytest.fixture
def interrupt(prepare_data: Prepare, encoder: ByteEncoder) -> Interrupt:
    """Prepares a corpus until so many batches are encoded."""

    def run(corpus: Path, batches: int, **options: Any) -> Stopping:
        error = options.pop("error", InterruptedRunError("stop"))
        stopping = Stopping(encoder, batches, error)
        with pytest.raises(type(error)):
            prepare_data(corpus, encoder, **{**UNITS, "encode": stopping, **options})
        return stopping

    return run


@pytest.fixture
def whole(corpus: Path, prepare_data: Prepare, cache: Path) -> str:
    """Contents of a preparation that nothing disturbed; the cache is empty again."""
    with prepare_data(corpus, **UNITS) as data:
        found = contents(data)
    shutil.rmtree(cache)
    return found


@pytest.mark.parametrize("seed", range(4))
def test_interrupted_at_any_point_equals_uninterrupted(
    corpus: Path,
    prepare_data: Prepare,
    encoder: ByteEncoder,
    interrupt: Interrupt,
    whole: str,
    seed: int,
) -> None:
    draw, stops = random.Random(seed), 0
    encoded_bytes = 0
    for _ in range(4):
        error = draw.choice([InterruptedRunError("stop"), KeyboardInterrupt(), OSError(28, "full")])
        try:
            stopping = Stopping(encoder, draw.randint(0, 9), error)
            prepare_data(corpus, encoder, **UNITS, encode=stopping).close()
        except (Exception, KeyboardInterrupt):  # noqa: BLE001
            stops += 1
        encoded_bytes += stopping.bytes
    last = Stopping(encoder, None, KeyboardInterrupt())
    with prepare_data(corpus, encoder, **UNITS, encode=last) as data:
        assert contents(data) == whole
        data.verify()
        size = data.index.train.text_bytes + data.index.validation.text_bytes
    again_bytes = encoded_bytes + last.bytes - size
    most_again = UNITS["journal_bytes"] + 2 * UNITS["batch_bytes"]
    assert again_bytes <= stops * most_again


def test_progress_goes_on_where_it_stopped(
    corpus: Path, prepare_data: Prepare, encoder: ByteEncoder, interrupt: Interrupt
) -> None:
    interrupt(corpus, 9)
    seen: list[tuple[int, int]] = []
    prepare_data(
        corpus, encoder, **UNITS, on_progress=lambda done, total: seen.append((done, total))
    ).close()
    assert seen[0][0] >= UNITS["journal_bytes"]
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]


def building(cache: Path) -> Path:
    (found,) = (cache / "shards").glob(".building-*")
    return found


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _damage_journal(scratch: Path, **changes: object) -> None:
    record = json.loads((scratch / JOURNAL_NAME).read_text())
    (scratch / JOURNAL_NAME).write_text(json.dumps({**record, **changes}))


@pytest.mark.parametrize(
    "damage",
    [
        lambda scratch: _flip(scratch / "new" / "train-00000.bin"),
        lambda scratch: _flip(scratch / "new" / "validation-00000.bin"),
        lambda scratch: (scratch / "new" / "train-00000.bin").write_bytes(b""),
        lambda scratch: (scratch / "new" / "train-00000.bin").unlink(),
        lambda scratch: shutil.rmtree(scratch / "new"),
        lambda scratch: (scratch / JOURNAL_NAME).write_text("{"),
        lambda scratch: _damage_journal(scratch, parts=3),
        lambda scratch: _damage_journal(scratch, text_sha256="0" * 64),
        lambda scratch: _damage_journal(scratch, train={}),
    ],
)
def test_what_is_not_as_it_was_written_is_written_again(
    corpus: Path,
    prepare_data: Prepare,
    cache: Path,
    interrupt: Interrupt,
    whole: str,
    damage: Callable[[Path], None],
) -> None:
    interrupt(corpus, 9)
    damage(building(cache))
    with prepare_data(corpus, **UNITS) as data:
        assert contents(data) == whole
        data.verify()


def test_what_came_after_the_journal_is_cut_off(
    corpus: Path,
    prepare_data: Prepare,
    encoder: ByteEncoder,
    cache: Path,
    interrupt: Interrupt,
    whole: str,
) -> None:
    interrupt(corpus, 9)
    new = building(cache) / "new"
    for path in new.iterdir():
        with path.open("ab") as file:
            file.write(b"xx" * 99)
    (new / "train-00099.bin").write_bytes(b"xx")
    rest = Stopping(encoder, None, KeyboardInterrupt())
    with prepare_data(corpus, encoder, **UNITS, encode=rest) as data:
        shards = {shard.name for shard in data.index.train.shards}
        data.verify()
        size = data.index.train.text_bytes + data.index.validation.text_bytes
    assert rest.bytes <= size - UNITS["journal_bytes"]
    (data.directory / "train-00099.bin").unlink(missing_ok=True)
    assert contents(data) == whole
    assert "train-00099.bin" not in shards


@pytest.mark.parametrize("unit", ["shard_bytes", "batch_bytes"])
def test_work_in_other_units_is_not_gone_on_with(
    corpus: Path, prepare_data: Prepare, cache: Path, interrupt: Interrupt, whole: str, unit: str
) -> None:
    interrupt(corpus, 5, **{unit: 2 * UNITS[unit]})
    assert (building(cache) / JOURNAL_NAME).is_file()
    with prepare_data(corpus, **UNITS) as data:
        assert contents(data) == whole


def test_text_that_changed_while_it_was_read_is_not_gone_on_with(
    corpus: Path, prepare_data: Prepare, cache: Path, interrupt: Interrupt, whole: str
) -> None:
    """It changes after it was measured, the work is interrupted, and it changes back."""
    before, calls = corpus.read_bytes(), iter(range(10**6))
    last_document = {"many.jsonl": 180, "book.txt": 0}[corpus.name]

    def change() -> None:
        if next(calls) == last_document:  # all of it is measured
            corpus.write_bytes(before.replace(b"a", b"b"))

    interrupt(corpus, 9, check_stop=change)
    assert (building(cache) / JOURNAL_NAME).is_file()
    corpus.write_bytes(before)
    with prepare_data(corpus, **UNITS) as data:
        assert contents(data) == whole


def test_a_separator_within_text_is_refused(
    corpus: Path,
    prepare_data: Prepare,
    make_encoder: type[ByteEncoder],
    entries: Callable[[], list[str]],
) -> None:
    class Wrong(make_encoder):  # type: ignore[misc]
        def encode_batch(self, texts: list[str], threads: int) -> list[list[int]]:
            return [[1, 256] for _ in texts]

    with pytest.raises(DataError, match=r"gave the separator, id 256, for text of .*"):
        prepare_data(corpus, Wrong(), **UNITS)
    assert entries() == []


def test_the_manifest_says_what_it_was_made_from(corpus: Path, prepare_data: Prepare) -> None:
    with prepare_data(corpus, made_from={"tokenizer_directory": "there"}) as data:
        manifest = read_manifest(data.directory)
    assert manifest is not None
    assert manifest["key"] == data.index.key
    assert manifest["sources"][0]["spec"] == str(corpus)
    assert manifest["tokenizer_directory"] == "there"
    assert manifest["text"]["bytes_read"] == manifest["text"]["bytes_encoded"]
    assert manifest["text"]["sha256"] == data.index.corpus_fingerprint
    assert manifest["tokens"]["train"] == data.index.train.tokens


def test_an_entry_without_a_manifest_is_as_good(corpus: Path, prepare_data: Prepare) -> None:
    prepare_data(corpus).close()
    with prepare_data(corpus) as data:
        (data.directory / MANIFEST_NAME).unlink()
        assert read_manifest(data.directory) is None
    with open_prepared(data.directory) as again:
        again.verify()


def test_bytes_that_were_not_encoded_are_noticed(
    corpus: Path, prepare_data: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmtrain.data.shards import build

    cut = build.cut_into_parts

    def losing(pieces: Any, batch_bytes: int) -> Any:
        parts = cut(pieces, batch_bytes)
        next(parts)
        yield from parts

    monkeypatch.setattr(build, "cut_into_parts", losing)
    with pytest.raises(DataError, match="bytes of text were encoded, and"):
        prepare_data(corpus)


def test_half_an_index_of_a_killed_process_is_no_part_of_the_entry(
    corpus: Path, prepare_data: Prepare, encoder: ByteEncoder, interrupt: Interrupt, cache: Path
) -> None:
    interrupt(corpus, 6)
    (new,) = (cache / "shards").glob(".building-*/new")
    (new / ".index.json.0123456789abcdef").write_text("{")
    with prepare_data(corpus, encoder, **UNITS) as data:
        assert not list(data.directory.glob(".*"))


def test_what_a_process_left_that_was_killed_at_the_very_end_is_removed(
    corpus: Path, prepare_data: Prepare
) -> None:
    """After it had given the entry its place, and before it had cleared up."""
    tokenizer = Tokenizer.load(TOKENIZER)
    with prepare_data(corpus, tokenizer) as data:
        before, shards = contents(data), data.directory.parent
        left = shards / f".building-{data.directory.name}"
    left.mkdir()
    (left / JOURNAL_NAME).write_text("{}")
    with prepare_data(corpus, tokenizer) as data:
        assert contents(data) == before
    assert list(shards.iterdir()) == [data.directory]
