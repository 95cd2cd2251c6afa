from __future__ import annotations

import dataclasses
import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from llmtrain.data.shards import build
from llmtrain.data.shards.index import INDEX_NAME, write_index
from llmtrain.data.shards.prepared import open_prepared
from llmtrain.errors import DataError, LlmtrainError
from tests.data.conftest import Prepare

Entries = Callable[[], list[str]]


@pytest.mark.parametrize("name", ["fsync", "rename", "write_index"])
def test_a_failing_disk_leaves_nothing(
    book: Path, prepare_data: Prepare, entries: Entries, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    owner = {"fsync": os, "rename": Path, "write_index": build}[name]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        with pytest.raises(LlmtrainError, match="No space left") as caught:
            prepare_data(book)
    assert caught.value.exit_code == 1
    assert entries() == []
    prepare_data(book).close()


def test_scratch_of_a_killed_process_is_removed_after_a_day(
    book: Path, prepare_data: Prepare, cache: Path, entries: Entries
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
    assert entries() == [".building-recent", prepared.index.key]


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
    book: Path, prepare_data: Prepare, entries: Entries, name: str
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
    assert entries() == [data.index.key]


def test_a_flipped_bit_is_named_and_repaired(book: Path, prepare_data: Prepare) -> None:
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


def test_index_survives_being_written_and_read(book: Path, prepare_data: Prepare) -> None:
    prepared = prepare_data(book)
    prepared.close()
    changed = dataclasses.replace(prepared.index, encoder_fingerprint='é"\\')
    write_index(prepared.directory, changed)
    with open_prepared(prepared.directory) as data:
        assert data.index == changed
