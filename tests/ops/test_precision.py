"""Kept casts are those of the last `forget`, and gradients pass through them to the weight."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from llmtrain.ops.precision import WeightCasts, autocast_as, compute_dtype, half_dtype

CPU = torch.device("cpu")


@pytest.fixture
def casts() -> WeightCasts:
    return WeightCasts(torch.bfloat16)


@pytest.fixture
def weight() -> nn.Parameter:
    return nn.Parameter(torch.randn(7, 5, generator=torch.Generator().manual_seed(0)))


def test_matrices_are_multiplied_as_the_plan_says() -> None:
    x = torch.zeros(1)
    assert compute_dtype(x) == torch.float32
    assert compute_dtype(x.double()) == torch.float64
    with autocast_as("fp32", CPU):
        assert compute_dtype(x) == torch.float32
    with autocast_as("bf16", CPU):
        assert compute_dtype(x) == torch.bfloat16


def test_only_half_precision_has_a_type_to_cast_to() -> None:
    found = [half_dtype(precision) for precision in ("fp32", "bf16", "fp16")]
    assert found == [None, torch.bfloat16, torch.float16]


def test_a_cast_is_the_weight_rounded(casts: WeightCasts, weight: nn.Parameter) -> None:
    assert torch.equal(casts.plain(weight), weight.detach().bfloat16())
    assert torch.equal(casts.of(weight), casts.plain(weight))
    assert not casts.plain(weight).requires_grad


def test_a_change_is_seen_after_forget_and_not_before(
    casts: WeightCasts, weight: nn.Parameter
) -> None:
    old = weight.detach().bfloat16()
    assert torch.equal(casts.plain(weight), old)
    with torch.no_grad():
        weight.mul_(3)
    assert torch.equal(casts.plain(weight), old)
    assert torch.equal(casts.of(weight), old)
    casts.forget()
    assert torch.equal(casts.of(weight), weight.detach().bfloat16())
    assert not torch.equal(casts.plain(weight), old)


def test_a_forgotten_copy_keeps_its_place(casts: WeightCasts, weight: nn.Parameter) -> None:
    """Steps allocate no new copies: what was compiled for one finds the next at its address."""
    before = casts.plain(weight).data_ptr()
    casts.forget()
    assert casts.plain(weight).data_ptr() == before


def test_each_weight_has_its_own_copy(casts: WeightCasts, weight: nn.Parameter) -> None:
    other = nn.Parameter(weight.detach() + 1)
    assert torch.equal(casts.plain(other), other.detach().bfloat16())
    assert torch.equal(casts.plain(weight), weight.detach().bfloat16())


def test_the_gradient_reaches_the_weight_in_its_own_type(
    casts: WeightCasts, weight: nn.Parameter
) -> None:
    d_y = torch.randn(7, 5, generator=torch.Generator().manual_seed(1)).bfloat16()
    casts.of(weight).backward(d_y)
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32
    assert torch.equal(weight.grad, d_y.float())


def test_gradients_of_micro_batches_add_up_wide(casts: WeightCasts, weight: nn.Parameter) -> None:
    """1 and 2⁻⁹ are 1 in bf16."""
    for size in (1.0, 2**-9):
        casts.of(weight).backward(torch.full((7, 5), size, dtype=torch.bfloat16))
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.full((7, 5), 1 + 2**-9))


class Layer(nn.Module):
    """A matrix and a gain."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Linear(5, 7, bias=False)
        self.gain = nn.Parameter(torch.full((7,), 1 + 2**-9))

    def forward(self, x: Tensor) -> tuple[Tensor, torch.dtype]:
        y: Tensor = self.matrix(x) * self.gain
        return y, self.gain.dtype


def test_a_module_is_called_with_its_matrices_cast_and_its_gains_as_they_are(
    casts: WeightCasts,
) -> None:
    layer, x = Layer(), torch.randn(3, 5)
    with autocast_as("bf16", CPU):
        expected, _ = layer(x)
        found, gain_dtype = casts.call(layer, x)
    assert torch.equal(found, expected)
    assert gain_dtype == torch.float32
    parameters = list(layer.parameters())
    ours = torch.autograd.grad(found.sum(), parameters)
    theirs = torch.autograd.grad(expected.sum(), parameters)
    assert all(map(torch.equal, ours, theirs))
    assert [g.dtype for g in ours] == [torch.float32] * 2


def test_a_call_leaves_the_modules_own_weights(casts: WeightCasts) -> None:
    layer = Layer()
    before = [id(p) for p in layer.parameters()]
    with autocast_as("bf16", CPU):
        casts.call(layer, torch.randn(3, 5))
    assert [id(p) for p in layer.parameters()] == before
    assert layer.matrix.weight.dtype == torch.float32


def test_a_copy_that_the_caller_rewrites_is_current(
    casts: WeightCasts, weight: nn.Parameter
) -> None:
    assert casts.to_rewrite(weight) is None
    casts.plain(weight)
    casts.forget()
    copy = casts.to_rewrite(weight)
    assert copy is not None
    copy.fill_(7.0)
    assert torch.equal(casts.plain(weight), torch.full_like(copy, 7.0))


def test_stacked_copies_are_rows_of_one_tensor_that_a_rewrite_reaches(casts: WeightCasts) -> None:
    weights = [torch.full((rows, 4), float(rows)) for rows in (3, 1, 2)]
    first = casts.plain(weights[1])  # before anyone asks for the stack
    stack = casts.stacked(weights)
    assert torch.equal(stack, torch.cat(weights).bfloat16())
    assert torch.equal(first, weights[1].bfloat16())
    for weight in weights:
        weight.mul_(2)
    casts.forget()
    rewritten = casts.to_rewrite(weights[2])
    assert rewritten is not None
    rewritten.fill_(7)
    assert torch.equal(casts.stacked(weights)[:4], torch.cat(weights[:2]).bfloat16())
    assert casts.stacked(weights)[4:].eq(7).all()
    assert casts.stacked(weights).data_ptr() == stack.data_ptr()
