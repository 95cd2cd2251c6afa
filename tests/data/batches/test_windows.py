from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtrain.data.batches.windows import BatchReader, sequential_windows, windows_of
from llmtrain.data.shards.token_stream import TokenArray, TokenStream
from llmtrain.errors import DataError


class Counting:
    """The stream 0, 1, 2, …, so that a token is its own position."""

    def __init__(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens

    def read(self, start: int, count: int) -> TokenArray:
        assert 0 <= start <= start + count <= self.num_tokens
        return np.arange(start, start + count, dtype=np.int64)


@settings(deadline=None)
@given(st.integers(2, 300), st.integers(1, 40))
def test_evaluation_scores_every_token_once(num_tokens: int, context: int) -> None:
    windows = list(sequential_windows(Counting(num_tokens), context))
    scored = np.concatenate([targets for _, targets in windows])
    assert scored.tolist() == list(range(1, num_tokens))
    for inputs, targets in windows:
        assert inputs.tolist() == [target - 1 for target in targets]
        assert len(targets) <= context


@settings(deadline=None)
@given(st.lists(st.integers(0, 60), max_size=12), st.integers(1, 40))
def test_batches_of_any_size_have_the_same_windows(sizes: list[int], context: int) -> None:
    num_tokens = max(2, sum(sizes))
    batches = np.split(np.arange(num_tokens), np.cumsum(sizes))
    found = windows_of(batches, context)
    expected = sequential_windows(Counting(num_tokens), context)
    for (inputs, targets), (own_inputs, own_targets) in zip(found, expected, strict=True):
        assert inputs.tolist() == own_inputs.tolist()
        assert targets.tolist() == own_targets.tolist()


@settings(deadline=None)
@given(st.integers(2, 300), st.integers(1, 40), st.integers(0, 100))
def test_an_epoch_trains_on_every_target_once(num_tokens: int, context: int, seed: int) -> None:
    if num_tokens <= context:
        return
    reader = BatchReader(Counting(num_tokens), context, seed)
    inputs, targets = reader.read(0, reader.num_windows)
    assert (targets == inputs + 1).all()
    assert sorted(targets.ravel()) == list(range(1, reader.num_windows * context + 1))
    assert num_tokens - 1 - targets.size < context


def test_shapes_and_types() -> None:
    inputs, targets = BatchReader(Counting(1000), 16, seed=0).read(3, 5)
    for array in (inputs, targets):
        assert array.shape == (5, 16)
        assert array.dtype == np.int64
        assert array.flags.c_contiguous
        assert array.flags.writeable


def test_ranks_together_read_what_one_reads() -> None:
    reader = BatchReader(Counting(1000), 8, seed=3)
    whole, _ = reader.read(100, 12)
    shares = [reader.read(100 + rank * 3, 3)[0] for rank in range(4)]
    assert (np.concatenate(shares) == whole).all()


def test_reading_goes_on_over_the_end_of_an_epoch() -> None:
    reader = BatchReader(Counting(65), 8, seed=3)
    inputs, _ = reader.read(0, 3 * reader.num_windows)
    assert set(Counter(inputs[:, 0].tolist()).values()) == {3}


def test_a_window_is_where_it_says() -> None:
    reader = BatchReader(Counting(65), 8, seed=3)
    inputs, _ = reader.read(0, 20)  # of eight windows: over two epochs
    assert [reader.first_token(position) for position in range(20)] == inputs[:, 0].tolist()


def test_nothing_to_predict_is_an_error_before_the_first_window() -> None:
    with pytest.raises(DataError, match="1 tokens"):
        sequential_windows(Counting(1), 4)
    with pytest.raises(DataError, match="context 8"):
        BatchReader(Counting(8), 8, seed=0)


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=6), st.sampled_from(["<u2", "<u4"]), st.data()
)
def test_shard_borders_cannot_be_seen(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], dtype: str, data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("shards")
    ids = np.arange(sum(sizes)) + (65_000 if dtype == "<u2" else 70_000)
    paths = write_shards(directory, ids.astype(dtype), sizes)
    with TokenStream(paths, np.dtype(dtype), 1 << 32) as stream:
        assert stream.num_tokens == sum(sizes)
        start = data.draw(st.integers(0, stream.num_tokens))
        count = data.draw(st.integers(0, stream.num_tokens - start))
        assert stream.read(start, count).tolist() == ids[start : start + count].tolist()


def write_shards(directory: Path, ids: np.ndarray, sizes: list[int]) -> list[Path]:
    paths = []
    for number, part in enumerate(np.split(ids, np.cumsum(sizes)[:-1])):
        path = directory / f"{number}.bin"
        path.write_bytes(part.tobytes())
        paths.append(path)
    return paths


def test_reads_outside_the_stream_are_refused(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, np.arange(6, dtype="<u2"), [4, 2])
    with TokenStream(paths, np.dtype("<u2"), 1 << 16) as stream:
        for start, count in [(-1, 2), (5, 2), (7, 0), (0, -1)]:
            with pytest.raises(IndexError):
                stream.read(start, count)


def test_arrays_outlive_the_stream(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, np.arange(6, dtype="<u2"), [4, 2])
    stream = TokenStream(paths, np.dtype("<u2"), 1 << 16)
    tokens = stream.read(2, 3)
    stream.close()
    for path in paths:
        path.unlink()
    assert tokens.tolist() == [2, 3, 4]


def test_an_id_that_no_embedding_has_is_named(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("train-00000.bin", "train-00001.bin")]
    paths[0].write_bytes(np.arange(10, dtype="<u2").tobytes())
    paths[1].write_bytes(np.array([3, 9, 10, 9], dtype="<u2").tobytes())
    with TokenStream(paths, np.dtype("<u2"), vocab_size=10) as stream:
        assert stream.read(5, 7).tolist() == [5, 6, 7, 8, 9, 3, 9]
        assert stream.read(13, 1).tolist() == [9]
        for start, count in ((12, 1), (0, 14), (10, 4)):
            with pytest.raises(DataError, match=r"00001\.bin is damaged: token 2 has id 10, and"):
                stream.read(start, count)
