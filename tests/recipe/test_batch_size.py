"""Rule 3: tokens per step follow the length of the run and the cost of Muon."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtrain.profile.load import load_profile
from llmtrain.profile.shape import ModelShape, orthogonalization_flops, shape_of
from llmtrain.recipe.batch_size import (
    _beside_muon,
    _by_horizon,
    best_tokens_per_step,
    muon_tokens,
)


def shape(name: str) -> ModelShape:
    return shape_of(load_profile(name, environment={}).profile.model)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [(1e6, 4096), (4.2e6, 4096), (8.4e6, 8192), (33.6e6, 16384), (134e6, 32768)],
)
def test_a_longer_run_has_longer_steps(tokens: float, expected: int) -> None:
    assert best_tokens_per_step(shape("cpu-small"), tokens, uses_muon=False) == expected


def test_muon_needs_steps_that_it_does_not_slow_down() -> None:
    small = shape("cpu-small")
    assert best_tokens_per_step(shape("cpu-tiny"), 1e5, uses_muon=True) == 4096
    assert best_tokens_per_step(small, 3.5e5, uses_muon=True) == 4096
    assert best_tokens_per_step(small, 3e6, uses_muon=True) == 8192
    assert best_tokens_per_step(small, None, uses_muon=True) == 8192
    assert best_tokens_per_step(small, 1e5, uses_muon=False) == 4096


def test_the_length_of_the_run_gives_exact_numbers() -> None:
    assert [_by_horizon(2.0**k) for k in (20, 23, 25, 27)] == [1024, 8192, 16384, 32768]
    best = _beside_muon(1700.0, 3e6)
    assert best * (best + 1700) == pytest.approx(1700 * 3e6 / 40)
    assert _beside_muon(1700.0, None) == 4 * 1700


def test_beside_muon_the_sum_of_both_losses_is_least() -> None:
    muon, tokens = 1700.0, 3e6

    def cost(length: float) -> float:
        return 12 * (length + muon) / tokens + 0.3 * math.log(1 + muon / length)

    best = _beside_muon(muon, tokens)
    assert cost(best) < min(cost(0.9 * best), cost(1.1 * best))


def test_a_products_operations_are_counted() -> None:
    # A product of (2, 3) and (3, 2) has 2 · 2 · 3 · 2 operations, of (2, 2) and (2, 2) 16.
    assert orthogonalization_flops(2, 3) == 5 * (24 + 16 + 24)
    assert orthogonalization_flops(3, 2) == orthogonalization_flops(2, 3)


@given(
    st.sampled_from(["cpu-tiny", "cpu-mini", "cpu-medium", "gpu-large"]),
    st.one_of(st.none(), st.floats(1, 1e15)),
    st.booleans(),
)
def test_a_step_is_whole_contexts(name: str, tokens: float | None, uses_muon: bool) -> None:
    found = best_tokens_per_step(shape(name), tokens, uses_muon=uses_muon)
    assert found >= shape(name).context
    assert found % shape(name).context == 0


def test_muon_costs_a_step_what_many_tokens_do() -> None:
    assert 500 < muon_tokens(shape("cpu-tiny")) < 700
