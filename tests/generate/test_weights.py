"""Matrices in int8: the nearest values, with a scale for each row."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from llmtrain.generate.weights import round_to_int8, rounded_to_int8
from llmtrain.model.decoder import Decoder
from llmtrain.profile.shape import ModelShape

MakeModel = Callable[[ModelShape], Decoder]


def values_of(whole: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return (whole.float() - 128) * scales[:, None]


def test_no_value_is_further_than_half_a_step() -> None:
    matrix = torch.randn(40, 33, generator=torch.Generator().manual_seed(0)) * 3
    matrix[7] = 0
    whole, scales = rounded_to_int8(matrix)
    assert whole.dtype == torch.uint8
    errors = (values_of(whole, scales) - matrix).abs()
    assert bool((errors <= 0.5001 * scales[:, None]).all())
    largest = matrix.abs().amax(1)
    assert values_of(whole, scales).abs().amax(1).tolist() == pytest.approx(largest.tolist())


def test_what_is_rounded_stays_as_it_is(small_shape: ModelShape, make_model: MakeModel) -> None:
    model = make_model(small_shape)
    before = model.head_weight.clone()
    round_to_int8(model)
    assert not torch.equal(model.head_weight, before)
    torch.testing.assert_close(model.head_weight, before, rtol=0.1, atol=0.05)
    whole, scales = rounded_to_int8(model.head_weight)
    round_to_int8(model)
    again, same_scales = rounded_to_int8(model.head_weight)
    assert torch.equal(whole, again)
    torch.testing.assert_close(scales, same_scales)
