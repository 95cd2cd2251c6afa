"""A sample is bounded, whole, from everywhere, and always the same."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtrain.tokenizer.sampling import ByteSample

DOCUMENTS = [f"{number:05d} is a document\n" * (1 + number % 7) for number in range(5_000)]


def sampled(documents: list[str], max_bytes: int) -> ByteSample:
    sample = ByteSample(max_bytes)
    for document in documents:
        sample.add(document)
    return sample


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=300)), st.integers(1, 2_000))
def test_the_cap_holds_and_the_counts_are_true(documents: list[str], max_bytes: int) -> None:
    sample = sampled(documents, max_bytes)
    used = sum(len(text.encode()) for text in sample)
    assert used == sample.bytes_used <= max_bytes
    assert sample.bytes_seen == sum(len(document.encode()) for document in documents)
    assert sample.documents == sum(document != "" for document in documents)


def test_all_is_taken_in_order_where_it_fits() -> None:
    assert list(sampled(DOCUMENTS, 1 << 20)) == DOCUMENTS


def test_documents_stay_whole_and_in_order() -> None:
    texts = list(sampled(DOCUMENTS, 40_000))
    assert set(texts) < set(DOCUMENTS)
    assert texts == sorted(texts)


def test_a_full_sample_is_nearly_full_and_from_every_tenth_of_the_corpus() -> None:
    sample = sampled(DOCUMENTS, 40_000)
    assert sample.bytes_used > 39_000
    places = [int(text[:5]) // 500 for text in sample]
    share = len(places) / 10
    assert all(places.count(tenth) == pytest.approx(share, rel=0.5) for tenth in range(10))


def test_the_same_documents_give_the_same_sample() -> None:
    assert list(sampled(DOCUMENTS, 40_000)) == list(sampled(DOCUMENTS, 40_000))


def test_a_smaller_sample_is_a_part_of_a_larger_one() -> None:
    """Room that a dropped document leaves is not for whatever happens to come next."""
    samples = [set(sampled(DOCUMENTS, max_bytes)) for max_bytes in range(10_000, 40_000, 999)]
    assert all(small <= large for small, large in pairwise(samples))


def test_one_giant_document_is_cut_at_line_ends_all_over_it() -> None:
    texts = list(sampled(["".join(DOCUMENTS)], 40_000))
    assert all(text.endswith("\n") and text[:5].isdigit() for text in texts)
    assert len({int(text[:5]) // 500 for text in texts}) == 10


def test_a_giant_line_is_cut_where_it_must_be() -> None:
    sample = sampled(["\U0001f600" * 10_000], 4_000)
    assert max(len(text.encode()) for text in sample) <= 4_000 // 64
    assert 3_900 < sample.bytes_used <= 4_000
