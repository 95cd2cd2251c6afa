"""Rule 1 has exact numbers, and prefers larger models for longer times."""

from __future__ import annotations

import pytest

from llmtrain.profile.load import load_profile
from llmtrain.profile.shape import ModelShape, shape_of
from llmtrain.recipe.model_size import best_for_time, expected_loss, expected_tokens


def shape(name: str) -> ModelShape:
    return shape_of(load_profile(name, environment={}).profile.model)


@pytest.mark.parametrize(
    ("parameters", "tokens", "expected"),
    [(10**7, 1e7, 1.008), (3 * 10**6, 3e6, 1.31167), (27 * 10**6, 5e7, 0.76555)],
)
def test_the_loss_has_the_fitted_numbers(parameters: int, tokens: float, expected: float) -> None:
    assert expected_loss(parameters, tokens) == pytest.approx(expected, abs=1e-5)


def test_tokens_are_the_products_share_of_the_time() -> None:
    tiny = shape("cpu-tiny")
    tokens = expected_tokens(tiny, 3600, 1e11)
    assert tokens * tiny.training_flops_per_token == pytest.approx(0.55 * 1e11 * 3600)


def test_a_longer_time_gets_a_larger_model() -> None:
    shapes = {name: shape(name) for name in ("cpu-tiny", "cpu-mini", "cpu-small", "cpu-medium")}
    chosen = [best_for_time(shapes, time_s, 1e11) for time_s in (60, 3600, 48 * 3600, 30 * 86400)]
    sizes = [shapes[choice.value].parameters for choice in chosen]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]
    assert chosen[0].reason.startswith("lowest expected loss: 3.44M parameters on about 147k")
