"""Attention, rotary positions and norms against the formulas."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llmtrain.choice import AttentionKernel
from llmtrain.ops.attention import cached_attention, causal_attention
from llmtrain.ops.norm import rms_norm
from llmtrain.ops.rotary import rotary_table, rotate


def draw(*size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*size, generator=generator, dtype=torch.float64)


def side_by_side(y_bhtd: Tensor) -> Tensor:
    return y_bhtd.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("kernel", ["sdpa", "blocks"])
def test_attention_is_the_formula(kernel: AttentionKernel) -> None:
    q, k, v = (draw(2, 3, 9, 4, seed=seed) for seed in range(3))
    scores = q @ k.transpose(-1, -2) / math.sqrt(4)
    later = torch.ones(9, 9, dtype=torch.bool).triu(1)
    expected = scores.masked_fill(later, -torch.inf).softmax(-1) @ v
    torch.testing.assert_close(causal_attention(q, k, v, kernel), side_by_side(expected))


@pytest.mark.parametrize("key_heads", [1, 2, 3, 6])
@pytest.mark.parametrize("kernel", ["sdpa", "blocks"])
def test_grouped_queries_are_repeated_keys(kernel: AttentionKernel, key_heads: int) -> None:
    q = draw(2, 6, 9, 4)
    k, v = draw(2, key_heads, 9, 4, seed=1), draw(2, key_heads, 9, 4, seed=2)
    repeated = [t.repeat_interleave(6 // key_heads, dim=1) for t in (k, v)]
    expected = causal_attention(q, *repeated, kernel)
    torch.testing.assert_close(causal_attention(q, k, v, kernel), expected)


@pytest.mark.parametrize("key_heads", [1, 2, 6])
@pytest.mark.parametrize("new", [1, 4])
def test_new_tokens_see_those_before_them(new: int, key_heads: int) -> None:
    q = draw(1, 6, 9, 4)
    k, v = (draw(1, key_heads, 9, 4, seed=seed) for seed in (1, 2))
    mask = None if new == 1 else torch.ones(new, 9, dtype=torch.bool).tril(9 - new)
    found = cached_attention(q[:, :, -new:], k, v, mask)
    torch.testing.assert_close(found, causal_attention(q, k, v)[:, -new:])


@settings(deadline=None, max_examples=50)
@given(
    st.integers(0, 400), st.integers(0, 400), st.integers(0, 600), st.sampled_from([1e2, 1e4, 1e6])
)
def test_scores_depend_on_the_distance_alone(a: int, b: int, shift: int, theta: float) -> None:
    cos, sin = (t.double() for t in rotary_table(16, 1024, theta))
    q, k = draw(1, 1, 1, 16), draw(1, 1, 1, 16, seed=1)

    def score(query_at: int, key_at: int) -> float:
        turned = [
            rotate(x, cos[at : at + 1], sin[at : at + 1], torch.float64)
            for x, at in ((q, query_at), (k, key_at))
        ]
        return (turned[0] * turned[1]).sum().item()

    assert score(a, b) == pytest.approx(score(a + shift, b + shift), abs=2e-3)


def test_rotation_keeps_norms_and_turns_by_the_table() -> None:
    cos, sin = rotary_table(8, 64, 10000.0)
    assert cos.shape == sin.shape == (64, 4)
    x = draw(2, 3, 64, 8)
    turned = rotate(x, cos.double(), sin.double(), torch.float64)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1), rtol=1e-6, atol=0)
    assert torch.equal(turned[:, :, 0], x[:, :, 0])
    for position, pair in ((1, 0), (5, 2), (63, 3)):
        angle = position * 10000.0 ** (-2 * pair / 8)
        first, second = x[0, 0, position, pair], x[0, 0, position, pair + 4]
        both = turned[0, 0, position, [pair, pair + 4]]
        expected = [
            first * math.cos(angle) - second * math.sin(angle),
            second * math.cos(angle) + first * math.sin(angle),
        ]
        torch.testing.assert_close(both, torch.stack(expected), rtol=1e-5, atol=1e-5)


def test_rotation_is_computed_wide() -> None:
    cos, sin = rotary_table(8, 4, 100.0)
    x = draw(1, 1, 4, 8).bfloat16()
    turned = rotate(x, cos, sin, torch.bfloat16)
    assert turned.dtype == torch.bfloat16
    assert torch.equal(turned, rotate(x.float(), cos, sin, torch.float32).bfloat16())


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_norm_is_the_formula(scale: float) -> None:
    x, gain = draw(3, 5, 16) * scale, draw(16, seed=1)
    rms = torch.sqrt((x * x).mean(dim=-1, keepdim=True) + 1e-6)
    torch.testing.assert_close(rms_norm(x, gain, 1e-6, torch.float64), gain * x / rms)


def test_norm_of_nothing_is_nothing() -> None:
    assert torch.equal(
        rms_norm(torch.zeros(2, 8), torch.ones(8), 1e-6, torch.float32), torch.zeros(2, 8)
    )


def test_norm_is_computed_in_the_precision_of_its_gain() -> None:
    """In bf16 alone the sum of squares would be off in the third digit."""
    x, gain = draw(2, 512).bfloat16(), draw(512, seed=1).float()
    expected = rms_norm(x.float(), gain, 1e-6, torch.float32)
    assert torch.equal(rms_norm(x, gain, 1e-6, torch.float32), expected)
    assert torch.equal(rms_norm(x, gain, 1e-6, torch.bfloat16), expected.bfloat16())
