from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from llmtrain.errors import DataError
from llmtrain.eval.segments import SEGMENT_BYTES, SegmentLosses, SegmentMeter, aligned

SEPARATOR = 0


def spell(token: int) -> bytes:
    return b"x" * token  # a token has as many bytes as its id


def measured(ids: NDArray[np.int64], *, at_once: int) -> SegmentLosses:
    meter = SegmentMeter(2000, SEPARATOR, spell)
    nats = np.arange(len(ids), dtype=np.float64)
    for start in range(0, len(ids), at_once):
        meter.add(ids[start : start + at_once], nats[start : start + at_once])
    return meter.losses()


@pytest.mark.parametrize("at_once", [1, 3, 7, 10_000])
def test_batches_do_not_matter(at_once: int) -> None:
    ids = np.random.default_rng(0).integers(0, 40, 5_000)
    whole, found = measured(ids, at_once=len(ids)), measured(ids, at_once=at_once)
    for name in SegmentLosses.__slots__:
        assert np.array_equal(getattr(whole, name), getattr(found, name)), name


def test_each_token_counts_once_and_a_separator_ends_its_document() -> None:
    found = measured(np.array([5, 6, SEPARATOR, SEPARATOR, 7, SEPARATOR]), at_once=10)
    assert found.documents.tolist() == [0, 1, 2]
    assert found.tokens.tolist() == [3, 1, 2]
    assert found.bytes.tolist() == [11, 0, 7]
    assert found.nats.tolist() == [0 + 1 + 2, 3, 4 + 5]


def test_a_long_document_has_segments_of_one_size() -> None:
    found = measured(np.full(1_000, 64), at_once=77)
    assert set(found.documents) == {0}
    assert found.segments.tolist() == list(range(len(found)))
    assert set(found.bytes[:-1]) == {SEGMENT_BYTES}
    assert found.bytes.sum() == 64_000


def test_tokenizers_with_other_tokens_have_the_same_segments() -> None:
    one, other = measured(np.full(1_000, 64), at_once=50), measured(np.full(2_000, 32), at_once=50)
    first, second = aligned((one, other))
    assert np.array_equal(first.segments, second.segments)
    assert np.array_equal(first.bytes, second.bytes)


def test_a_segment_that_only_one_has_counts_nothing_for_the_other() -> None:
    one = measured(np.full(64, 64), at_once=64)
    other = measured(np.array([*[64] * 64, 1]), at_once=65)
    first, second = aligned((one, other))
    assert (first.nats[-1], first.bytes[-1], second.bytes[-1]) == (0, 0, 1)
    assert second.nats.sum() == other.nats.sum()


def test_no_token_has_no_segment() -> None:
    with pytest.raises(DataError, match="no text to evaluate"):
        SegmentMeter(10, SEPARATOR, spell).losses()
