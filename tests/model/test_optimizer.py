"""Muon moves hidden matrices by orthogonal steps of one size."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from llmtrain.model import optimizer as optimizer_module
from llmtrain.model.optimizer import RoleOptimizer
from llmtrain.ops.precision import WeightCasts

LR = 0.1


def optimizer_of(parameters: list[nn.Parameter], **changes: Any) -> RoleOptimizer:
    group = {
        "params": parameters,
        "algorithm": "muon",
        "lr": LR,
        "weight_decay": 0.0,
        "momentum": 0.9,
    }
    return RoleOptimizer([group | changes], product_dtype=torch.float32)


def parameters(*shapes: tuple[int, int]) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    made = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    for parameter in made:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return made


def stepped(some: list[nn.Parameter], **changes: Any) -> list[Tensor]:
    before = [p.detach().clone() for p in some]
    optimizer_of(some, **changes).step()
    return [p.detach() - b for p, b in zip(some, before, strict=True)]


@pytest.mark.parametrize("shape", [(32, 32), (32, 96), (96, 32)])
def test_a_step_is_orthogonal_and_as_long_as_the_shape_says(shape: tuple[int, int]) -> None:
    moved = stepped(parameters(shape))[0]
    sizes = torch.linalg.svdvals(moved) / (LR * max(1.0, shape[0] / shape[1]) ** 0.5)
    # the least of a square matrix's are too near 0 to grow to 1 in five iterations
    assert sizes.median() > 0.65
    assert sizes.max() < 1.25


def test_all_state_is_there_before_the_first_update_works(monkeypatch: pytest.MonkeyPatch) -> None:
    some, embedding = parameters((16, 48), (48, 16), (16, 16)), parameters((8, 16))
    optimizer = optimizer_of(some)
    adamw = {"algorithm": "adamw", "lr": LR, "weight_decay": 0.0, "betas": (0.9, 0.95), "eps": 1e-8}
    optimizer.add_param_group({"params": embedding, **adamw})
    seen = []

    def orthogonalize(stack: Tensor) -> Tensor:
        seen.append([set(optimizer.state[p]) for p in (*some, *embedding)])
        return stack

    monkeypatch.setattr(optimizer_module, "orthogonalize", orthogonalize)
    optimizer.step()
    assert seen[0] == [{"momentum"}] * 3 + [{"step", "exp_avg", "exp_avg_sq"}]


def test_the_size_of_a_gradient_does_not_matter_and_its_sign_does() -> None:
    some = parameters((16, 48))
    small = stepped(some)[0]
    gradient = some[0].grad
    assert gradient is not None
    some[0].grad = -1000 * gradient
    torch.testing.assert_close(stepped(some)[0], -small, rtol=1e-3, atol=1e-5)


def test_a_matrix_moves_as_if_it_were_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = ((16, 48), (48, 16), (16, 48), (24, 24))
    together = stepped(parameters(*shapes))
    monkeypatch.setattr(optimizer_module, "MUON_STACK_BYTES", 1)  # a stack a matrix
    for one, other in zip(together, stepped(parameters(*shapes)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_momentum_is_nesterovs() -> None:
    some = parameters((8, 24))
    first = some[0].grad
    assert first is not None
    optimizer = optimizer_of(some)
    optimizer.step()
    torch.testing.assert_close(optimizer.state[some[0]]["momentum"], 0.1 * first)
    second = torch.flip(first, (0,))
    before, some[0].grad = some[0].detach().clone(), second
    optimizer.step()
    momentum = 0.9 * 0.1 * first + 0.1 * second
    ahead = 0.1 * second + 0.9 * momentum
    expected = optimizer_module.orthogonalize(ahead[None])[0]
    torch.testing.assert_close(some[0].detach(), before - LR * expected, rtol=1e-4, atol=1e-6)


def test_weights_decay_by_the_rate() -> None:
    some = parameters((8, 8))
    some[0].grad = torch.zeros(8, 8)
    before = some[0].detach().clone()
    optimizer_of(some, weight_decay=0.5).step()
    torch.testing.assert_close(some[0].detach(), before * (1 - LR * 0.5))


def test_what_has_no_gradient_stays() -> None:
    some = parameters((8, 8), (8, 8))
    some[1].grad = None
    moved = stepped(some)
    assert moved[0].abs().max() > 0
    assert torch.equal(moved[1], torch.zeros(8, 8))


def in_groups(some: list[nn.Parameter], *, native: bool) -> RoleOptimizer:
    """Return an optimizer in bf16 with a group of Muon and one of AdamW, and kept casts."""
    shared = {"lr": 0.01, "weight_decay": 0.1, "momentum": 0.9, "betas": (0.9, 0.95), "eps": 1e-8}
    groups = [
        shared | {"algorithm": "muon", "params": some[:2]},
        shared | {"algorithm": "adamw", "params": some[2:]},
    ]
    made = RoleOptimizer(groups, product_dtype=torch.bfloat16, native=native)
    made.casts = WeightCasts(torch.bfloat16)
    return made


@pytest.mark.usefixtures("native_kernels")
@pytest.mark.parametrize("limit", [None, 0.5])
def test_native_kernels_update_as_torch_does(limit: float | None) -> None:
    shapes = ((16, 48), (48, 16), (40, 24), (24, 8))
    ours, torchs = parameters(*shapes), parameters(*shapes)
    native, plain = in_groups(ours, native=True), in_groups(torchs, native=False)
    assert native.casts is not None
    for parameter in ours[:3]:
        native.casts.plain(parameter)
    for _ in range(5):
        norm = native.clip_gradients(limit)
        native.step()
        limit_or_none = math.inf if limit is None else limit
        assert norm == pytest.approx(float(clip_grad_norm_(torchs, limit_or_none)), rel=1e-6)
        plain.step()
        generator = torch.Generator().manual_seed(round(1e6 * norm))
        for one, other in zip(ours, torchs, strict=True):
            gradient = torch.randn(one.shape, generator=generator)
            one.grad, other.grad = gradient, gradient.clone()
    for one, other in zip(ours, torchs, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-3)  # bf16 products
        assert native.state[one].keys() == plain.state[other].keys()
        assert torch.equal(native.casts.plain(one), one.bfloat16())
    for one, other in zip(ours[2:], torchs[2:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_a_step_forgets_casts() -> None:
    some = parameters((16, 48), (48, 16), (40, 24))
    optimizer = in_groups(some, native=False)
    assert optimizer.casts is not None
    before = [optimizer.casts.plain(parameter).clone() for parameter in some]
    optimizer.step()
    for parameter, copy in zip(some, before, strict=True):
        assert torch.equal(optimizer.casts.plain(parameter), parameter.bfloat16())
        assert not torch.equal(optimizer.casts.plain(parameter), copy)
