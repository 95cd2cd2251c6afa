"""The native update: what torch's clipping, AdamW and rounding do, in one pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.optim.adamw import adamw

from llmtrain.ops.native.update import AdamwTensors, descend, global_norm, native_adamw, nesterov

pytestmark = pytest.mark.usefixtures("native_kernels")

SHAPES = [(1, 1), (7,), (16,), (33, 31), (300, 257), ()]
LR, BETAS, DECAY, EPS = 1e-3, (0.9, 0.95), 0.1, 1e-8


def draw(factor: float = 1.0, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [factor * torch.randn(shape, generator=generator) for shape in SHAPES]


def fresh(copies: bool = True) -> list[AdamwTensors]:
    return [
        AdamwTensors(
            weight=weight,
            gradient=torch.zeros_like(weight),
            exp_avg=torch.zeros_like(weight),
            exp_avg_sq=torch.zeros_like(weight),
            step=torch.zeros(()),
            copy=torch.zeros_like(weight, dtype=torch.bfloat16) if copies else None,
        )
        for weight in draw(0.02)
    ]


def step(some: list[AdamwTensors], gradients: list[Tensor], factor: float = 1.0) -> None:
    with_gradients = [
        replace(each, gradient=gradient) for each, gradient in zip(some, gradients, strict=True)
    ]
    native_adamw(
        with_gradients, gradient_factor=factor, lr=LR, betas=BETAS, weight_decay=DECAY, eps=EPS
    )


def torchs_step(some: list[AdamwTensors], gradients: list[Tensor]) -> None:
    adamw(
        [each.weight for each in some],
        gradients,
        [each.exp_avg for each in some],
        [each.exp_avg_sq for each in some],
        [],
        [each.step for each in some],
        foreach=False,
        fused=True,
        amsgrad=False,
        beta1=BETAS[0],
        beta2=BETAS[1],
        lr=LR,
        weight_decay=DECAY,
        eps=EPS,
        maximize=False,
    )


def with_threads(threads: int, compute: Callable[[], list[Tensor]]) -> list[Tensor]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return compute()
    finally:
        torch.set_num_threads(before)


def test_a_norm_is_exact_and_does_not_depend_on_the_threads() -> None:
    tensors = [*draw(), torch.randn(70_000, generator=torch.Generator().manual_seed(1))]
    exact = math.sqrt(sum(float(x.double().square().sum()) for x in tensors))
    norms = [with_threads(n, lambda: [torch.tensor(global_norm(tensors))]) for n in (1, 2, 5)]
    assert len({float(norm[0]) for norm in norms}) == 1
    assert global_norm(tensors) == pytest.approx(exact, rel=1e-7)
    assert global_norm([]) == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_norm_of_what_is_not_finite_is_not_finite(bad: float) -> None:
    tensors = draw()
    tensors[3][-1, -1] = bad
    assert not math.isfinite(global_norm(tensors))


@pytest.mark.parametrize("size", [1.0, 1e-4, 1e-12], ids=str)
def test_it_is_torchs_adamw(size: float) -> None:
    ours, torchs = fresh(), fresh()
    for seed in range(50):
        gradients = draw(size, seed)
        step(ours, gradients)
        torchs_step(torchs, gradients)
    for one, other in zip(ours, torchs, strict=True):
        assert float(one.step) == float(other.step) == 50.0
        for name in ("weight", "exp_avg", "exp_avg_sq"):
            a, b = getattr(one, name).double(), getattr(other, name).double()
            assert float((a - b).norm() / b.norm()) <= 1e-6
            assert (a - b).abs().max() <= 2e-6 * b.abs().max()


def test_a_copy_is_the_weight_as_torch_rounds_it() -> None:
    some = fresh()
    some[3].weight[0, :3] = torch.tensor([1e-39, -3e-41, 0.0])  # subnormal
    step(some, [torch.zeros(shape) for shape in SHAPES])
    for each in some:
        assert torch.equal(each.copy, each.weight.bfloat16())
    assert some[3].copy[0, 0] != 0


def test_without_a_copy_and_with_any_threads_the_bits_are_the_same() -> None:
    def weights(copies: bool) -> list[Tensor]:
        some = fresh(copies)
        step(some, draw(1e-3))
        return [each.weight for each in some]

    expected = with_threads(1, lambda: weights(True))
    for threads, copies in ((1, False), (2, True), (5, False)):
        found = with_threads(threads, lambda copies=copies: weights(copies))
        assert all(map(torch.equal, found, expected))


def test_scaling_gradients_first_gives_the_same_bits() -> None:
    factor = float(torch.tensor(0.37))  # representable in fp32, as torch's factor is
    ours, scaled = fresh(), fresh()
    gradients = draw(1e-2)
    step(ours, gradients, factor)
    step(scaled, [gradient * factor for gradient in gradients])
    for one, other in zip(ours, scaled, strict=True):
        assert torch.equal(one.weight, other.weight)
        assert torch.equal(one.exp_avg_sq, other.exp_avg_sq)


def test_momentum_and_direction_are_nesterovs() -> None:
    gradient, momentum = draw(1e-3)[4], draw(1e-3, seed=1)[4]
    expected = momentum.lerp(gradient * 0.5, 1.0 - 0.95)
    ahead = (gradient * 0.5).lerp(expected, 0.95)
    direction = nesterov(gradient, momentum, 0.95, 0.5)
    torch.testing.assert_close(momentum, expected, rtol=1e-5, atol=1e-9)
    assert direction.dtype == torch.bfloat16
    torch.testing.assert_close(direction.float(), ahead, rtol=5e-3, atol=1e-9)


@pytest.mark.parametrize("has_copy", [True, False])
def test_a_weight_decays_and_descends(has_copy: bool) -> None:
    weight, direction = draw(0.02)[4], draw(seed=2)[4].bfloat16()
    copy = torch.empty_like(direction) if has_copy else None
    expected = weight * 0.99 - 0.1 * direction.float()
    descend(weight, direction, decay=0.01, rate=0.1, copy=copy)
    torch.testing.assert_close(weight, expected, rtol=1e-6, atol=1e-8)
    if copy is not None:
        assert torch.equal(copy, weight.bfloat16())


def test_tensors_that_do_not_fit_are_refused() -> None:
    some = fresh()
    with pytest.raises(RuntimeError, match="floats"):
        step([replace(some[3], copy=None, exp_avg=some[3].exp_avg[1:])], [draw()[3]])
    with pytest.raises(RuntimeError, match="bf16"):
        step([replace(some[3], copy=torch.zeros(33, 31))], [draw()[3]])
