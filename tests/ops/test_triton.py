"""Triton kernels give what torch's operators give, forward and backward.

They run on a GPU, or with TRITON_INTERPRET=1 on the CPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from llmtrain.model.block import RMSNorm
from llmtrain.model.decoder import Decoder
from llmtrain.ops.rotary import rotary_table
from llmtrain.profile.shape import ModelShape

EPSILON = 1e-6
SHAPE = ModelShape(
    vocab_size=50,
    num_layers=2,
    hidden_size=32,
    intermediate_size=48,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    context=8,
    rope_theta=1e4,
    norm_epsilon=EPSILON,
    tie_embeddings=True,
    qk_norm=True,
)


@pytest.fixture
def device() -> torch.device:
    """The device that kernels run on."""
    pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") == "1":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("no GPU; TRITON_INTERPRET=1 runs the kernels on a CPU")
    return torch.device("cuda")


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def assert_equal(
    found: Callable[[], Sequence[Tensor]],
    expected: Callable[[], Sequence[Tensor]],
    inputs: Sequence[Tensor],
    limit: float = 1e-6,
) -> None:
    """Assert that results are equal, and the gradients of a random sum of them."""
    for a, b in zip(_with_gradients(found, inputs), _with_gradients(expected, inputs), strict=True):
        assert error(a, b) < limit


def _with_gradients(
    function: Callable[[], Sequence[Tensor]], inputs: Sequence[Tensor]
) -> list[Tensor]:
    results = function()
    torch.manual_seed(1)
    total = sum((x * torch.randn(x.shape).to(x)).sum() for x in results)
    assert isinstance(total, Tensor)
    return [*(x.detach() for x in results), *torch.autograd.grad(total, inputs)]


def norms(width: int, device: torch.device) -> tuple[RMSNorm, RMSNorm]:
    """A norm by Triton and one by torch, of the same gain."""
    ours = RMSNorm(width, EPSILON).to(device)
    with torch.no_grad():
        ours.weight.uniform_()
    ours.kernels = "triton"
    theirs = RMSNorm(width, EPSILON).to(device)
    theirs.weight = ours.weight
    return ours, theirs


@pytest.mark.parametrize("width", [64, 96, 2048])  # a power of two, not one, more than a tile
def test_norms_of_the_residual_stream(device: torch.device, width: int) -> None:
    torch.manual_seed(0)
    x, delta = (torch.randn(2, 5, width, device=device, requires_grad=True) for _ in range(2))
    ours, theirs = norms(width, device)
    both = [x, delta, ours.weight]
    assert_equal(lambda: ours.of_sum(x, delta), lambda: theirs.of_sum(x, delta), both)
    assert_equal(lambda: ours.of_residual(x), lambda: theirs.of_residual(x), [x, ours.weight])


@pytest.mark.parametrize("size", [32, 24])
def test_norms_of_heads_and_rotary_positions(device: torch.device, size: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 7, size, device=device, requires_grad=True)
    table = [each.to(device) for each in rotary_table(size, 7, 1e4)]
    ours, theirs = norms(size, device)
    found, expected = (lambda: [ours.rotated(x, *table)]), (lambda: [theirs.rotated(x, *table)])
    assert_equal(found, expected, [x, ours.weight])


@pytest.mark.parametrize("kv_heads", [3, 1])
def test_query_key_and_value_of_one_product(device: torch.device, kv_heads: int) -> None:
    from llmtrain.ops.triton.rotary import split_norm_rotate

    torch.manual_seed(0)
    heads, size = 3, 24
    qkv = torch.randn(2, 7, (heads + 2 * kv_heads) * size, device=device, requires_grad=True)
    table = [each.to(device) for each in rotary_table(size, 7, 1e4)]
    (_, q_norm), (_, k_norm) = norms(size, device), norms(size, device)

    def expected() -> list[Tensor]:
        q, k, v = qkv.unflatten(-1, (-1, size)).split([heads, kv_heads, kv_heads], dim=2)
        rotated = [
            norm.rotated(x.transpose(1, 2), *table).transpose(1, 2)
            for norm, x in ((q_norm, q), (k_norm, k))
        ]
        return [*rotated, v]

    def found() -> Sequence[Tensor]:
        gains = q_norm.weight, k_norm.weight
        return split_norm_rotate(qkv, *gains, EPSILON, table[0], table[1], heads)

    assert_equal(found, expected, [qkv, q_norm.weight, k_norm.weight])


def test_swiglu_of_one_product(device: torch.device) -> None:
    from llmtrain.ops.triton.swiglu import swiglu

    torch.manual_seed(0)
    x = torch.randn(3, 4, 80, device=device, requires_grad=True)

    def expected() -> list[Tensor]:
        gate, up = x.chunk(2, dim=-1)
        return [F.silu(gate) * up]

    assert_equal(lambda: [swiglu(x)], expected, [x])


@pytest.mark.parametrize("elements", [256, 1024])  # of a row of 1,000: several times, and once
def test_logits_become_their_gradient(
    device: torch.device, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmtrain.ops.triton import cross_entropy

    monkeypatch.setattr(cross_entropy, "_ELEMENTS", elements)
    torch.manual_seed(0)
    logits = (40 * torch.randn(7, 1000, device=device)).requires_grad_()
    targets = torch.randint(0, 1000, (7,), device=device)
    targets[3] = -1  # does not count
    weights = torch.rand(7, device=device)
    losses = F.cross_entropy(logits, targets, reduction="none", ignore_index=-1)
    expected = (losses * weights).sum()
    (gradient,) = torch.autograd.grad(expected, logits)
    replaced = logits.detach().clone()
    loss, divisors = cross_entropy.differentiate_logits(replaced, targets, None, weights)
    assert divisors is None
    assert error(loss, expected.detach()) < 1e-6
    assert error(replaced, gradient) < 1e-5
    assert not replaced[3].any()


def test_a_model_has_the_same_loss_and_gradients(device: torch.device) -> None:
    torch.manual_seed(0)
    model = Decoder(SHAPE)
    model.initialise(0)
    with torch.no_grad():
        for parameter in model.parameters():  # also those that begin as zero
            parameter.add_(0.05 * torch.randn(parameter.shape))
    model.to(device)
    tokens, targets = torch.randint(0, 50, (2, 2, 8)).to(device)

    def results() -> list[Tensor]:
        model.zero_grad()
        loss = model(tokens, targets)
        loss.backward()
        return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]

    model.compute_with(loss="triton", block_kernels="triton")
    found = results()
    model.compute_with()
    for a, b in zip(found, results(), strict=True):
        assert error(a, b) < 1e-5


def test_bf16_is_as_accurate_as_torch(device: torch.device) -> None:
    """Heads and streams in bf16 beside fp32: no further off than what torch computes in bf16."""
    if device.type == "cpu":
        pytest.skip("Triton's interpreter cuts bf16 off instead of rounding it")
    torch.manual_seed(0)
    x = torch.randn(2, 3, 7, 32, device=device).bfloat16()
    table = [each.to(device) for each in rotary_table(32, 7, 1e4)]
    ours, theirs = norms(32, device)
    expected = theirs.rotated(x.float(), *table)
    found = ours.rotated(x, *table)
    assert found.dtype == torch.bfloat16
    with torch.autocast(device.type, torch.bfloat16):
        assert error(found, expected) <= 1.2 * error(theirs.rotated(x, *table), expected)
