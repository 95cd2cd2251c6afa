"""What follows the backward of a step by native kernels: one pass over memory each.

All tensors are dense, on the CPU, and fp32 but for copies and directions, which are bf16.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def global_norm(tensors: Sequence[Tensor]) -> float:
    """Return the 2-norm of all numbers in `tensors`, the same bits for any number of threads."""
    dense = [x.contiguous() for x in tensors]
    squares: float = torch.ops.llmtrain_native.sum_of_squares(dense)
    return math.sqrt(squares)


@dataclass(frozen=True, slots=True)
class AdamwTensors:
    """A parameter, its gradient, its state, and the bf16 copy of it that is kept, if any."""

    weight: Tensor
    gradient: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: Tensor
    copy: Tensor | None


def native_adamw(
    parameters: Sequence[AdamwTensors],
    *,
    gradient_factor: float,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    eps: float,
) -> None:
    """Update parameters, states and copies by AdamW, of gradients times `gradient_factor`."""
    torch.ops.llmtrain_native.adamw(
        [each.weight for each in parameters],
        [each.gradient.contiguous() for each in parameters],
        [each.exp_avg for each in parameters],
        [each.exp_avg_sq for each in parameters],
        [each.step for each in parameters],
        [each.copy for each in parameters],
        gradient_factor,
        lr,
        *betas,
        weight_decay,
        eps,
    )


def nesterov(
    gradient: Tensor, momentum: Tensor, coefficient: float, gradient_factor: float
) -> Tensor:
    """Update `momentum` by a gradient times `gradient_factor`; return Nesterov's direction."""
    direction: Tensor = torch.ops.llmtrain_native.nesterov(
        gradient.contiguous(), momentum, gradient_factor, coefficient
    )
    return direction


def descend(
    weight: Tensor, direction: Tensor, *, decay: float, rate: float, copy: Tensor | None
) -> None:
    """Decay `weight` by the share `decay`, move it by −`rate` · `direction`; write its copy."""
    torch.ops.llmtrain_native.descend(weight, direction.contiguous(), copy, 1.0 - decay, rate)
