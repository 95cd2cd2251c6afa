"""Every token is a target once, no document is cut that could be whole, and windows are full."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtrain.data.batches import packing_cache
from llmtrain.data.batches.packing import IGNORED, PackedReader, Packing, best_fit, pack
from llmtrain.data.batches.packing_cache import cached_packing
from llmtrain.data.shards.token_stream import TokenArray
from llmtrain.errors import DataError
from tests.data.conftest import Prepare

SEPARATOR = 0
Sizes = st.lists(st.integers(1, 40), min_size=1, max_size=40)


@dataclass
class Documents:
    """A separator and what follows, for each size; every other token is its own position."""

    sizes: list[int]
    read_tokens: int = 0
    ids: TokenArray = field(init=False)

    def __post_init__(self) -> None:
        self.ids = np.arange(sum(self.sizes) + 1, dtype=np.int64)
        self.ids[np.cumsum([0, *self.sizes])] = SEPARATOR

    @property
    def num_tokens(self) -> int:
        return len(self.ids)

    def read(self, start: int, count: int) -> TokenArray:
        assert 0 <= start <= start + count <= self.num_tokens
        self.read_tokens += count
        return self.ids[start : start + count].copy()


def windows_of(packing: Packing) -> list[list[tuple[int, int]]]:
    return [list(packing.chunks_of(window)) for window in range(packing.num_windows)]


def one_by_one(lengths: list[int], context: int) -> list[int]:
    """Best-fit decreasing as the book has it."""
    rooms, window_of = list[int](), [0] * len(lengths)
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fitting = [(room, w) for w, room in enumerate(rooms) if room >= lengths[index]]
        if not fitting:
            rooms.append(context)
            fitting = [(context, len(rooms) - 1)]
        window = min(fitting)[1]
        rooms[window] -= lengths[index]
        window_of[index] = window
    return window_of


@settings(deadline=None, max_examples=300)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=60), st.integers(30, 50))
def test_chunks_are_placed_as_best_fit_places_them(lengths: list[int], context: int) -> None:
    assert best_fit(np.array(lengths), context).tolist() == one_by_one(lengths, context)


@settings(deadline=None, max_examples=200)
@given(Sizes, st.integers(1, 50), st.integers(1, 50))
def test_every_document_is_there_once_and_whole_where_it_can_be(
    sizes: list[int], context: int, horizon: int
) -> None:
    packing = pack(Documents(sizes), SEPARATOR, context, horizon_chunks=horizon)
    found = Counter(chunk for window in windows_of(packing) for chunk in window)
    expected, start = Counter[tuple[int, int]](), 0
    for size in sizes:
        for at in range(0, size, context):
            expected[start + at, min(context, size - at)] += 1
        start += size
    assert found == expected
    assert all(0 < sum(n for _, n in window) <= context for window in windows_of(packing))


@settings(deadline=None, max_examples=100)
@given(Sizes, st.integers(1, 50), st.integers(0, 5))
def test_an_epoch_trains_on_every_target_once(sizes: list[int], context: int, seed: int) -> None:
    text = Documents(sizes)
    packing = pack(text, SEPARATOR, context)
    reader = PackedReader(text, packing, SEPARATOR, context, seed)
    inputs, targets = reader.read(reader.num_windows, reader.num_windows)  # the second epoch
    real = targets != IGNORED
    assert Counter(targets[real].tolist()) == Counter(text.ids[1:].tolist())
    assert Counter(inputs[real].tolist()) == Counter(text.ids[:-1].tolist())
    assert (inputs[~real] == SEPARATOR).all()
    assert not (np.diff(real.astype(int), axis=1) > 0).any()  # padding comes last
    follows = (inputs[:, 1:] == targets[:, :-1]) | ~real[:, 1:]
    assert (follows | (targets[:, :-1] == SEPARATOR)).all()  # a chunk ends where its document does
    per_window = [reader.count_targets(reader.num_windows + i, 1) for i in range(len(real))]
    assert per_window == real.sum(axis=1).tolist()
    assert reader.count_targets(0, 3 * reader.num_windows) == 3 * (text.num_tokens - 1)


def test_ranks_together_read_what_one_reads_and_never_the_same() -> None:
    text = Documents([7, 3, 20, 4, 4, 9, 1, 1, 12, 6] * 10)
    reader = PackedReader(text, pack(text, SEPARATOR, 16), SEPARATOR, 16, seed=3)
    whole, _ = reader.read(8, 12)
    shares = [reader.read(8 + rank * 3, 3)[0] for rank in range(4)]
    assert (np.concatenate(shares) == whole).all()
    assert sum(reader.count_targets(8 + rank * 3, 3) for rank in range(4)) == reader.count_targets(
        8, 12
    )


def test_shapes_and_types() -> None:
    text = Documents([5] * 10)
    reader = PackedReader(text, pack(text, SEPARATOR, 16), SEPARATOR, 16, seed=0)
    for array in reader.read(3, 5):
        assert array.shape == (5, 16)
        assert array.dtype == np.int64
        assert array.flags.c_contiguous
        assert array.flags.writeable


def test_windows_are_nearly_full_and_none_of_these_documents_is_cut() -> None:
    sizes = np.random.default_rng(0).integers(1, 257, 5000).tolist()
    packing = pack(Documents(sizes), SEPARATOR, 256)
    assert packing.fills().sum() / (256 * packing.num_windows) > 0.99
    assert sorted(n for window in windows_of(packing) for _, n in window) == sorted(sizes)


def test_an_index_takes_eight_bytes_a_chunk_and_a_window() -> None:
    packing = pack(Documents([3] * 1000), SEPARATOR, 10)
    assert packing.chunks.nbytes == 8 * 1000
    assert packing.windows.nbytes == 8 * (packing.num_windows + 1)


def test_a_horizon_keeps_neighbours_together_and_packs_each_alike() -> None:
    sizes = np.random.default_rng(1).integers(1, 30, 400).tolist()
    whole = windows_of(pack(Documents(sizes), SEPARATOR, 64, horizon_chunks=100))
    first = windows_of(pack(Documents(sizes[:100]), SEPARATOR, 64, horizon_chunks=100))
    assert whole[: len(first)] == first
    ends = np.cumsum(sizes)
    for window in whole:
        assert len({int(np.searchsorted(ends, start, "right")) // 100 for start, _ in window}) == 1


def test_a_stop_is_heard_while_a_text_is_gone_through() -> None:
    class StopError(Exception):
        pass

    def check_stop() -> None:
        raise StopError

    with pytest.raises(StopError):
        pack(Documents([5] * 10), SEPARATOR, 16, check_stop=check_stop)


def test_what_cannot_be_packed_is_refused() -> None:
    text = Documents([1])
    text.ids = text.ids[:1]
    with pytest.raises(DataError, match="1 tokens of text have nothing to predict"):
        pack(text, SEPARATOR, 16)
    with pytest.raises(DataError, match="context 16777216 is longer than 16777215"):
        pack(Documents([5]), SEPARATOR, 1 << 24)


def test_a_packing_is_kept_and_a_damaged_one_made_again(
    prepare_data: Prepare, book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with prepare_data(book) as data:
        made = cached_packing(data, 64)
        (path,) = data.directory.glob("packing-*-64.bin")
        whole = path.read_bytes()
        for damaged in (whole, whole[:-8], whole[:100] + b"\1" + whole[101:], b""):
            path.write_bytes(damaged)
            if damaged == whole:
                monkeypatch.setattr(packing_cache, "pack", None)  # nothing is packed again
            again = cached_packing(data, 64)
            monkeypatch.undo()
            assert path.read_bytes() == whole
            assert (again.chunks == made.chunks).all()
            assert (again.windows == made.windows).all()
        assert cached_packing(data, 32).num_windows > made.num_windows


def test_without_room_for_it_a_packing_is_made_and_used(
    prepare_data: Prepare, book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packing_cache, "write_pieces_atomically", full)
    with prepare_data(book) as data:
        assert cached_packing(data, 64).num_windows > 0
        assert not list(data.directory.glob("packing-*"))
