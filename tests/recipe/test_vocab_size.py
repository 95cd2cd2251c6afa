"""The size of a vocabulary follows the model, and never outgrows the text."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtrain.recipe.vocab_size import vocabulary_size

PLENTY = 10**13
amounts = st.integers(1, 10**13)


@pytest.mark.parametrize(
    ("parameters", "pieces"), [(3_000_000_000, 43_000), (70_000_000_000, 207_700)]
)
def test_the_numbers_are_those_of_the_paper(parameters: int, pieces: int) -> None:
    assert vocabulary_size(PLENTY, parameters).value == pytest.approx(pieces, abs=64)


@pytest.mark.parametrize(
    ("text_bytes", "pieces"),
    [(1, 512), (10**6, 512), (10**7, 3072), (10**8, 24_704), (10**9, 32_000), (PLENTY, 32_000)],
)
def test_for_an_unknown_model_the_text_decides(text_bytes: int, pieces: int) -> None:
    assert vocabulary_size(text_bytes, None).value == pieces


@given(amounts, amounts, amounts)
def test_more_of_either_is_never_fewer_pieces(text_bytes: int, fewer: int, more: int) -> None:
    low, high = sorted((fewer, more))
    by_model = [vocabulary_size(text_bytes, n).value for n in (low, high)]
    by_text = [vocabulary_size(n, text_bytes).value for n in (low, high)]
    assert by_model == sorted(by_model)
    assert by_text == sorted(by_text)


@given(amounts, st.none() | amounts)
def test_the_rarest_piece_is_seen_often_enough(text_bytes: int, parameters: int | None) -> None:
    pieces = vocabulary_size(text_bytes, parameters).value
    assert pieces % 64 == 0
    assert 512 <= pieces <= 256_000
    if pieces > 512:
        assert text_bytes / 4 / (pieces * math.log(pieces)) >= 100


@pytest.mark.parametrize(
    ("text_bytes", "parameters", "said"),
    [
        (1_000_000, 10**9, "rarest piece is seen 100 times; the model could use"),
        (PLENTY, 10**9, "Tao et al. 2024"),
        (PLENTY, None, "--parameters would consider the model"),
    ],
)
def test_the_reason_is_the_bound_that_held(
    text_bytes: int, parameters: int | None, said: str
) -> None:
    assert said in vocabulary_size(text_bytes, parameters).reason
