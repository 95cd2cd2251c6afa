from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from llmtrain.eval.bootstrap import bits_per_byte_interval, paired_difference
from llmtrain.eval.segments import SegmentLosses


def losses(bits: NDArray[np.float64], sizes: NDArray[np.int64]) -> SegmentLosses:
    """Documents of one segment each."""
    numbers = np.arange(len(bits))
    return SegmentLosses(numbers, np.zeros_like(numbers), bits * math.log(2), sizes // 4 + 1, sizes)


def population(documents: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Documents of very different length and difficulty."""
    draw = np.random.default_rng(1)
    sizes = draw.lognormal(6, 1, documents).astype(np.int64) + 1
    return sizes * draw.normal(1.2, 0.3, documents), sizes


@pytest.mark.parametrize("documents", [60, 200])
def test_the_interval_covers_the_value_of_the_whole_text(documents: int) -> None:
    bits, sizes = population(20_000)
    truth = bits.sum() / sizes.sum()
    draw, covered = np.random.default_rng(2), 0
    for _ in range(400):
        chosen = draw.integers(0, len(bits), documents)
        found = bits_per_byte_interval(losses(bits[chosen], sizes[chosen]))
        covered += found.low <= truth <= found.high
    assert 0.93 <= covered / 400 <= 0.97


def test_documents_are_drawn_where_there_are_enough() -> None:
    bits, sizes = population(200)
    found = bits_per_byte_interval(losses(bits, sizes))
    assert (found.unit, found.units, found.level) == ("document", 200, 0.95)


def test_blocks_are_drawn_where_one_document_holds_most_of_the_text() -> None:
    segments = 3_000
    draw = np.random.default_rng(0)
    documents = np.concatenate([np.zeros(segments - 50, dtype=np.int64), np.arange(1, 51)])
    sizes = np.full(segments, 4096)
    text = SegmentLosses(
        documents, np.arange(segments), draw.normal(3000, 200, segments), sizes // 4, sizes
    )
    found = bits_per_byte_interval(text)
    assert (found.unit, found.units) == ("block", 100)
    assert found.low < text.nats.sum() / math.log(2) / sizes.sum() < found.high


def test_many_documents_are_drawn_in_groups() -> None:
    bits, sizes = population(30_000)
    found = bits_per_byte_interval(losses(bits, sizes))
    assert (found.unit, found.units) == ("document", 5_000)


def test_equal_inputs_have_equal_intervals() -> None:
    bits, sizes = population(100)
    assert bits_per_byte_interval(losses(bits, sizes)) == bits_per_byte_interval(
        losses(bits, sizes)
    )


def test_a_pair_sees_what_two_intervals_do_not() -> None:
    bits, sizes = population(200)
    one, other = losses(bits, sizes), losses(bits * 1.01, sizes)
    intervals = [bits_per_byte_interval(each) for each in (one, other)]
    assert intervals[0].high > intervals[1].low
    found = paired_difference(one, other)
    assert found.is_seen
    assert found.bits_per_byte == pytest.approx(0.01 * bits.sum() / sizes.sum())
    assert paired_difference(other, one).bits_per_byte == pytest.approx(-found.bits_per_byte)


def test_noise_is_seen_as_a_difference_about_one_time_in_twenty() -> None:
    bits, sizes = population(200)
    draw, seen = np.random.default_rng(3), 0
    for _ in range(400):
        noise = sizes * draw.normal(0, 0.05, len(bits))
        seen += paired_difference(losses(bits, sizes), losses(bits + noise, sizes)).is_seen
    assert 0.03 <= seen / 400 <= 0.08


@pytest.mark.parametrize("bits", [[1.0], [math.nan, 1.0], [math.inf] * 40])
def test_what_has_no_interval_says_so(bits: list[float]) -> None:
    found = bits_per_byte_interval(losses(np.array(bits), np.full(len(bits), 10)))
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert found.contains_zero is False
