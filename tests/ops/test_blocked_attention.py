"""Attention over blocks of rows is scaled_dot_product_attention, however it is cut."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from llmtrain.ops import blocked_attention as module
from llmtrain.ops.blocked_attention import blocked_attention

Inputs = tuple[Tensor, Tensor, Tensor]
Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]
# Sequences, query heads, key heads, tokens, features a head.
SHAPES = {
    "one-block": (2, 4, 4, 64, 16),
    "rest-of-a-block": (2, 6, 2, 130, 16),
    "one-token": (3, 2, 1, 1, 8),
    "whole-blocks": (2, 4, 1, 256, 48),
    "odd-everything": (3, 3, 3, 257, 12),
    "long": (1, 2, 1, 2100, 16),
}
Shape = tuple[int, int, int, int, int]


def draw(shape: Shape, dtype: torch.dtype = torch.float64) -> Inputs:
    sequences, heads, key_heads, tokens, size = shape
    generator = torch.Generator().manual_seed(0)

    def one(count: int) -> Tensor:
        drawn = torch.randn(sequences, count, tokens, size, generator=generator)
        return drawn.to(dtype).requires_grad_()

    return one(heads), one(key_heads), one(key_heads)


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return y.transpose(1, 2).flatten(2)


def value_and_gradients(kernel: Kernel, inputs: Inputs) -> list[Tensor]:
    y = kernel(*inputs)
    generator = torch.Generator().manual_seed(1)
    d_y = torch.randn(y.shape, generator=generator).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, inputs, d_y)]


def exactly(inputs: Inputs) -> list[Tensor]:
    """The same with torch's kernel in fp64, from the same rounded inputs."""
    q, k, v = (x.detach().double().requires_grad_() for x in inputs)
    return value_and_gradients(sdpa, (q, k, v))


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm().clamp(min=1e-30))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)],
    ids=["fp64", "fp32", "bf16"],
)
def test_value_and_gradients_are_torchs(dtype: torch.dtype, tolerance: float, shape: Shape) -> None:
    inputs = draw(shape, dtype)
    found = value_and_gradients(blocked_attention, inputs)
    assert {x.dtype for x in found} == {dtype}
    expected = exactly(inputs)
    if shape[3] == 1:  # softmax of one score: no gradient reaches queries or keys
        assert not found[1].any()
        assert not found[2].any()
        found, expected = [found[0], found[3]], [expected[0], expected[3]]
    errors = [relative(a, b) for a, b in zip(found, expected, strict=True)]
    assert max(errors) <= tolerance


def test_sums_over_blocks_are_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bf16 the gradient of keys and values would be worse the more blocks it is added from."""
    inputs = draw((1, 2, 1, 1500, 16), torch.bfloat16)
    expected, errors = exactly(inputs)[2:], []
    for block_rows in (1500, 16):
        monkeypatch.setattr(module, "_BLOCK_ROWS", block_rows)
        found = value_and_gradients(blocked_attention, inputs)[2:]
        errors.append([relative(a, b) for a, b in zip(found, expected, strict=True)])
    assert all(many <= 1.5 * one for one, many in zip(*errors, strict=True)), errors


@pytest.mark.parametrize("block_rows", [1, 3, 64, 1000])
def test_the_size_of_a_block_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, block_rows: int
) -> None:
    inputs = draw((2, 4, 2, 70, 8))
    monkeypatch.setattr(module, "_BLOCK_ROWS", block_rows)
    found = value_and_gradients(blocked_attention, inputs)
    assert max(map(relative, found, exactly(inputs))) <= 1e-12


@pytest.mark.parametrize("at_once", [0, 1, 2, 5, 9])
def test_sequences_that_are_cut_change_nothing(
    monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    """Five sequences, computed so many at a time; at least one, though there is no room for it."""
    inputs = draw((5, 4, 2, 70, 8))
    whole = value_and_gradients(blocked_attention, inputs)
    one_bytes = 4 * 70 * 70 * 8
    monkeypatch.setattr(module, "_SCORES_BYTES", at_once * one_bytes)
    cuts = list(module._splits(inputs[0]))
    assert [len(range(5)[cut]) for cut in cuts] == {
        0: [1] * 5,
        1: [1] * 5,
        2: [2, 2, 1],
        5: [5],
        9: [5],
    }[at_once]
    cut = value_and_gradients(blocked_attention, inputs)
    assert max(map(relative, cut, whole)) <= 1e-14


def test_what_is_not_dense_is_read_as_what_it_is() -> None:
    """As the decoder hands them over: heads side by side, or one large matrix for all three."""
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(2, 140, 4 + 2 + 2, 16, generator=generator, dtype=torch.float64)
    wide.requires_grad_()

    def of_wide(kernel: Kernel) -> list[Tensor]:
        y = kernel(*wide.transpose(1, 2).split([4, 2, 2], dim=1))
        d_y = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape[::-1]).permute(2, 1, 0)
        assert not d_y.is_contiguous()
        return [y.detach(), *torch.autograd.grad(y, wide, d_y)]

    assert max(map(relative, of_wide(blocked_attention), of_wide(sdpa))) <= 1e-12


@pytest.mark.parametrize("position", [1, 100, 128, 255])
def test_later_tokens_are_not_seen(position: int) -> None:
    """Bitwise, in value and in gradient, on both sides of the edge of a block."""
    q, k, v = draw((1, 4, 2, 256, 8), torch.float32)
    before = blocked_attention(q, k, v)
    changed = [x.detach().clone() for x in (q, k, v)]
    for x in changed:
        x[:, :, position:] = 100 * torch.randn_like(x[:, :, position:])
    after = blocked_attention(changed[0], changed[1], changed[2])
    assert torch.equal(after[:, :position], before[:, :position])
    assert not torch.equal(after[:, position], before[:, position])
    for gradient in torch.autograd.grad(before[:, :position].sum(), (q, k, v)):
        assert not gradient[:, :, position:].any()


def test_the_gradient_is_the_slope(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK_ROWS", 3)
    assert torch.autograd.gradcheck(blocked_attention, draw((2, 4, 2, 7, 4)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_scores_stay_finite(dtype: torch.dtype) -> None:
    q, k, v = ((30 * x).detach().requires_grad_() for x in draw((1, 2, 2, 200, 16), dtype))
    assert all(x.isfinite().all() for x in value_and_gradients(blocked_attention, (q, k, v)))


def test_only_inputs_are_kept_for_the_backward() -> None:
    inputs, kept = draw((2, 4, 2, 200, 8)), list[int]()

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        blocked_attention(*inputs)
    assert kept == [x.untyped_storage().data_ptr() for x in inputs]


# torch 2.14's own check reads the gradient of what it copied.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_compiler_is_told_the_truth(dtype: torch.dtype) -> None:
    """Shapes, types, strides and what is changed, of the operator and of its gradient."""
    torch.library.opcheck(module._forward, draw((2, 4, 2, 130, 8), dtype))
    q, k, v = (x.detach() for x in draw((2, 4, 2, 130, 8), dtype))
    torch.library.opcheck(module._backward, (torch.ones_like(module._forward(q, k, v)), q, k, v))
