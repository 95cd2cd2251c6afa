"""Reading ahead changes when windows are read, and nothing else."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtrain.data.batches.prefetch import Prefetch, Windows
from llmtrain.data.batches.windows import BatchReader
from llmtrain.data.shards.token_stream import TokenStream
from llmtrain.errors import DataError


class Reader:
    """Windows that are their own positions, and who read them."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        self.by_caller: list[tuple[int, int]] = []
        self.caller = threading.get_ident()

    def read(self, first: int, count: int) -> Windows:
        self.asked.append((first, count))
        if threading.get_ident() == self.caller:
            self.by_caller.append((first, count))
        if first >= 1000:
            raise DataError(f"no window {first}")
        positions = np.arange(first, first + count)
        return positions, positions + 1


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 3), st.integers(0, 9)), max_size=12))
def test_what_is_asked_for_is_what_is_read_whatever_was_foretold(
    requests: list[tuple[int, int, int]],
) -> None:
    with Prefetch(Reader().read) as prefetch:
        for first, count, then in requests:
            inputs, targets = prefetch.read(first, count, then)
            assert inputs.tolist() == list(range(first, first + count))
            assert targets.tolist() == list(range(first + 1, first + count + 1))


def test_what_was_foretold_is_read_once_and_by_another_thread() -> None:
    reader = Reader()
    with Prefetch(reader.read) as prefetch:
        for first in range(0, 50, 5):
            prefetch.read(first, 5, first + 5)
    assert reader.by_caller == [(0, 5)]
    assert reader.asked[:10] == [(first, 5) for first in range(0, 50, 5)]
    assert len(reader.asked) <= 11


def test_the_caller_goes_on_meanwhile() -> None:
    has_gone_on, waited = threading.Event(), list[bool]()

    def read(first: int, count: int) -> Windows:
        if first == 5:
            waited.append(has_gone_on.wait(30))
        return Reader().read(first, count)

    with Prefetch(read) as prefetch:
        prefetch.read(0, 5, 5)
        has_gone_on.set()
        prefetch.read(5, 5, 10)
    assert waited == [True]


def test_a_failure_is_told_to_who_asks_and_to_nobody_else() -> None:
    with Prefetch(Reader().read) as prefetch:
        prefetch.read(0, 1, 1000)
        prefetch.read(1, 1, 1001)
        with pytest.raises(DataError, match="no window 1001"):
            prefetch.read(1001, 1, 2)
        assert prefetch.read(2, 1, 1002)[0].tolist() == [2]


def test_afterwards_the_files_can_be_closed_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "0.bin"
    path.write_bytes(np.arange(60_000, dtype="<u2").tobytes())
    for _ in range(20):
        stream = TokenStream([path], np.dtype("<u2"), 1 << 16)
        with Prefetch(BatchReader(stream, 100, seed=0).read) as prefetch:
            prefetch.read(0, 300, 300)
        stream.close()  # raises where something still reads
    path.unlink()
