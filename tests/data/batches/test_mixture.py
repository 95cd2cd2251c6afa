"""Sources are read in the shares that were asked for, each whole before it is read again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtrain.data.batches.mixture import (
    Interleaving,
    MixedBatches,
    MixedSource,
    TokenRange,
    locate_sources,
)
from llmtrain.data.batches.packing import IGNORED, PackedReader, pack
from llmtrain.data.batches.windows import BatchReader, Tokens, WindowReader
from llmtrain.data.corpus import Corpus
from llmtrain.data.quality.clean import clean
from llmtrain.data.shards.prepared import PreparedData
from llmtrain.data.shards.token_stream import TokenArray
from llmtrain.data.sources.resolve import resolve_sources
from llmtrain.data.split import plan_split
from llmtrain.errors import DataError
from tests.data.conftest import ByteEncoder
from tests.shards import prepared_shards
from tests.tokens import Ids

CONTEXT = 8
WEIGHTS = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=7)


class Counting:
    """The stream 0, 1, 2, …, so that a token is its own position."""

    def __init__(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens

    def read(self, start: int, count: int) -> TokenArray:
        assert 0 <= start <= start + count <= self.num_tokens
        return np.arange(start, start + count, dtype=np.int64)


def mixed(sizes: Sequence[int], weights: Sequence[float], seed: int = 0) -> MixedBatches:
    """Sources of so many tokens, one after the other; each ends with the first of the next."""
    starts = accumulate(sizes, initial=0)
    sources = [
        MixedSource(f"{index}", weight, start, size + 1)
        for index, (size, weight, start) in enumerate(zip(sizes, weights, starts, strict=False))
    ]
    stream = Counting(sum(sizes) + 1)
    return MixedBatches(stream, sources, seed, lambda part, own: BatchReader(part, CONTEXT, own))


def first_token(reader: WindowReader, position: int) -> int:
    """Where in the text the window at `position` begins."""
    return int(reader.read(position, 1)[0][0, 0])


@settings(max_examples=50)
@given(WEIGHTS, st.integers(1, 400))
def test_every_prefix_has_the_shares_that_were_asked_for(weights: list[float], length: int) -> None:
    turns = [Interleaving(weights).locate(position) for position in range(length)]
    for prefix in range(length + 1):
        for source, weight in enumerate(weights):
            found = sum(1 for each, _ in turns[:prefix] if each == source)
            assert abs(found - prefix * weight / sum(weights)) <= max(1, len(weights) / 2) + 1e-9


@given(WEIGHTS, st.integers(0, 2**70))
def test_far_out_each_turn_of_a_source_is_its_next(weights: list[float], first: int) -> None:
    order = Interleaving(weights)
    taken: dict[int, int] = {}
    for position in range(first, first + 30):
        source, turn = order.locate(position)
        assert turn == taken.get(source, turn)
        taken[source] = turn + 1


def test_decimals_are_what_they_say() -> None:
    """A tenth has no binary form, and so many positions would show it."""
    order = Interleaving([0.1, 0.2, 0.7])
    first: dict[int, int] = {}
    for position in range(10**16, 10**16 + 10):
        first.setdefault(*order.locate(position))
    assert first == {0: 10**15, 1: 2 * 10**15, 2: 7 * 10**15}


def test_sources_take_turns_and_not_runs() -> None:
    sources = [Interleaving([3, 1]).locate(position)[0] for position in range(4000)]
    assert all(sources[i : i + 4].count(1) == 1 for i in range(0, 4000, 4))


def test_a_source_is_read_whole_before_it_is_read_again() -> None:
    """And whatever it is mixed with: windows of another source are not of its business."""
    sizes = [40, 400, 96]
    reader = mixed(sizes, [5, 2, 3])
    starts = list(accumulate(sizes, initial=0))
    read: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for position in range(1500):
        first = first_token(reader, position)
        source = sum(first >= start for start in starts[1:])
        assert first + CONTEXT <= starts[source + 1]
        read[source].append((first - starts[source]) // CONTEXT)
    for source, size in enumerate(sizes):
        windows = size // CONTEXT
        epochs = [read[source][i : i + windows] for i in range(0, len(read[source]), windows)]
        assert len(epochs) > 1
        assert all(sorted(epoch) == list(range(windows)) for epoch in epochs[:-1])
        assert all(a != b for a, b in pairwise(epochs[:-1]) if windows > 5)


def test_sources_of_one_length_are_not_read_in_step() -> None:
    reader = mixed([800, 800], [1, 1])
    first = [first_token(reader, position) for position in range(0, 200, 2)]
    second = [first_token(reader, position) - 800 for position in range(1, 201, 2)]
    assert sorted(first) == sorted(second)
    assert sum(a == b for a, b in zip(first, second, strict=True)) < 10


def test_several_windows_are_those_that_each_is() -> None:
    reader = mixed([80, 160], [1, 2], seed=3)
    inputs, targets = reader.read(7, 50)
    assert (targets == inputs + 1).all()
    assert [first_token(reader, 7 + row) for row in range(50)] == inputs[:, 0].tolist()
    assert reader.count_targets(7, 50) == targets.size
    for array in (inputs, targets):
        assert array.shape == (50, CONTEXT)
        assert array.dtype == np.int64
        assert array.flags.c_contiguous
        assert array.flags.writeable


def test_a_window_is_told_by_its_source() -> None:
    reader = mixed([80, 160], [1, 2])
    for position in range(30):
        start = first_token(reader, position)
        source, own = (0, start) if start < 80 else (1, start - 80)
        assert reader.place(position).startswith(f"{source}: tokens {own} to {own + CONTEXT} of")


def test_sources_are_packed_each_by_itself() -> None:
    """What is padded is no target, and no window has documents of two sources."""
    ids = np.array([9, 1, 1, 1, 1, 1] * 20 + [9, 2, 2] * 30 + [9])
    stream = Ids(ids)
    sources = [MixedSource("one", 1, 0, 121), MixedSource("two", 1, 120, 91)]

    def packed(tokens: Tokens, seed: int) -> WindowReader:
        return PackedReader(tokens, pack(tokens, 9, CONTEXT), 9, CONTEXT, seed)

    reader = MixedBatches(stream, sources, 0, packed)
    inputs, targets = reader.read(0, reader.num_windows)
    for row in inputs:
        assert len(set(row.tolist()) - {9}) == 1
    assert reader.count_targets(0, reader.num_windows) == (targets != IGNORED).sum() < targets.size


def test_ranks_together_read_what_one_reads() -> None:
    reader = mixed([80, 160], [1, 2])
    whole, _ = reader.read(100, 12)
    shares = [mixed([80, 160], [1, 2]).read(100 + rank * 3, 3)[0] for rank in range(4)]
    assert (np.concatenate(shares) == whole).all()


def test_an_epoch_has_as_many_windows_as_all_sources() -> None:
    assert mixed([80, 160, 17], [9, 1, 1]).num_windows == 10 + 20 + 2


def test_the_order_is_fixed_for_ever() -> None:
    """A resumed run depends on these numbers: a change here breaks every run under way."""
    reader = mixed([80, 160], [1, 2], seed=42)
    assert [first_token(reader, position) for position in range(9)] == [
        80,
        24,
        144,
        152,
        8,
        136,
        88,
        0,
        184,
    ]
    whole = BatchReader(Counting(241), CONTEXT, seed=42)
    assert [first_token(whole, position) for position in range(9)] == [
        152,
        88,
        64,
        104,
        120,
        16,
        208,
        136,
        40,
    ]


def test_a_source_without_a_window_is_named() -> None:
    with pytest.raises(DataError, match=r"^1: 8 tokens of text are too few"):
        mixed([80, 7, 80], [1, 1, 1])


def test_a_range_is_not_left() -> None:
    part = TokenRange(Counting(100), 10, 5)
    assert part.read(0, 5).tolist() == [10, 11, 12, 13, 14]
    for start, count in [(-1, 2), (0, 6), (5, 1)]:
        with pytest.raises(IndexError):
            part.read(start, count)
    with pytest.raises(DataError, match="from 96 to 101, and there are 100"):
        TokenRange(Counting(100), 96, 5)


def write_lines(path: Path, texts: Sequence[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def located(
    paths: Sequence[Path], cache: Path, encoder: ByteEncoder
) -> tuple[PreparedData, tuple[MixedSource, ...]]:
    corpus = resolve_sources([str(path) for path in paths])
    data = prepared(corpus, cache, encoder)
    return data, found_in(data, corpus)


def prepared(corpus: Corpus, cache: Path, encoder: ByteEncoder) -> PreparedData:
    return prepared_shards(corpus, encoder, cache)


def found_in(data: PreparedData, corpus: Corpus) -> tuple[MixedSource, ...]:
    split = plan_split(corpus, corpus.measure(), 0.1)
    separator_id = data.index.separator_id
    weights = [1.0] * len(corpus.sources)
    return locate_sources(corpus, split, data.train, separator_id, weights)


@pytest.mark.parametrize("documents", [3, 300], ids=["cut into blocks", "whole documents"])
def test_a_source_is_its_own_text_and_no_other(
    tmp_path: Path, cache: Path, encoder: ByteEncoder, documents: int
) -> None:
    names = ("one", "two", "three")
    paths = [
        write_lines(
            tmp_path / f"{name}.jsonl",
            [f"{name} {number}\n" * (1000 // documents + 1) for number in range(documents)],
        )
        for name in names
    ]
    data, sources = located(paths, cache, encoder)
    with data:
        total = 0
        for name, source in zip(names, sources, strict=True):
            ids = data.train.read(source.first_token, source.tokens)
            assert ids[0] == ids[-1] == encoder.separator_id
            text = encoder.decode([i for i in ids.tolist() if i != encoder.separator_id])
            lines = text.splitlines()
            assert len(lines) > 500
            assert all(line.startswith(f"{name} ") for line in lines)
            total += source.tokens - 1
        assert total + 1 == data.train.num_tokens


def test_shards_that_others_made_can_be_mixed(
    tmp_path: Path, cache: Path, encoder: ByteEncoder
) -> None:
    """The cache knows a text, and not of how many sources it was."""
    texts = [f"{number}" for number in range(300)]
    whole = write_lines(tmp_path / "whole.jsonl", texts)
    halves = [write_lines(tmp_path / f"{i}.jsonl", texts[i * 150 :][:150]) for i in range(2)]
    first, _ = located([whole], cache, encoder)
    second, sources = located(halves, cache, encoder)
    with first, second:
        assert first.directory == second.directory
        ids = second.train.read(sources[1].first_token, sources[1].tokens)
    assert min(int(text) for text in _texts(ids, encoder)) >= 150


def _texts(ids: TokenArray, encoder: ByteEncoder) -> list[str]:
    borders = np.flatnonzero(ids == encoder.separator_id)
    return [encoder.decode(ids[a + 1 : b].tolist()) for a, b in pairwise(borders)]


def test_what_is_left_out_is_of_no_source(
    tmp_path: Path, cache: Path, encoder: ByteEncoder
) -> None:
    """Where a source begins is seen though its first documents are those of an earlier one."""
    first = write_lines(tmp_path / "a.jsonl", [f"a {number}" for number in range(150)])
    again = [f"a {number}" for number in range(0, 150, 2)]
    second = write_lines(tmp_path / "b.jsonl", [*again, *(f"b {number}" for number in range(150))])
    whole = resolve_sources([str(first), str(second)])
    corpus = clean(whole, [], "drop_exact", lambda: None).corpus
    data = prepared(corpus, cache, encoder)
    with data:
        for name, source in zip("ab", found_in(data, corpus), strict=True):
            found = _texts(data.train.read(source.first_token, source.tokens), encoder)
            assert len(found) > 100
            assert {text[0] for text in found} == {name}


def test_a_source_without_text_of_its_own_is_refused(
    tmp_path: Path, cache: Path, encoder: ByteEncoder
) -> None:
    lines = write_lines(tmp_path / "a.jsonl", [f"text {number}" for number in range(200)])
    empty = tmp_path / "b.txt"
    empty.write_text("")
    for paths in ([lines, empty], [lines, lines], [empty, lines]):
        with pytest.raises(DataError, match="no text to train on") as caught:
            located(paths, cache, encoder)
        assert str(empty if empty in paths else lines) in caught.value.message


def test_tokens_of_another_text_are_refused(
    tmp_path: Path, cache: Path, encoder: ByteEncoder
) -> None:
    paths = [write_lines(tmp_path / name, [f"{name} {i}" for i in range(150)]) for name in "ab"]
    data, _ = located(paths, cache, encoder)
    for number in (140, 160):
        write_lines(paths[1], [f"b {i}" for i in range(number)])
        with pytest.raises(DataError, match="changed"):
            found_in(data, resolve_sources([str(path) for path in paths]))
    data.close()
