"""Root-mean-square norm (Zhang and Sennrich 2019)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from llmtrain.choice import BlockKernels


def rms_norm(x: Tensor, gain: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
    """Return `gain · x / rms(x)` over the last dimension as `dtype`, computed in `gain`'s type."""
    return F.rms_norm(x.to(gain.dtype), (x.shape[-1],), gain, epsilon).to(dtype)


def norm_residual(
    x: Tensor, gain: Tensor, epsilon: float, dtype: torch.dtype, kernels: BlockKernels = "torch"
) -> tuple[Tensor, Tensor]:
    """Return a residual stream to add to, and it normed as `dtype`."""
    if kernels == "triton":
        from llmtrain.ops.triton import norm

        return norm.norm_residual(x, gain, epsilon, dtype)
    return x, rms_norm(x, gain, epsilon, dtype)


def add_norm_residual(
    x: Tensor, delta: Tensor, gain: Tensor, epsilon: float, kernels: BlockKernels = "torch"
) -> tuple[Tensor, Tensor]:
    """Return the residual stream `x + delta`, and it normed in the type of `delta`."""
    if kernels == "triton":
        from llmtrain.ops.triton import norm

        return norm.add_norm_residual(x, delta, gain, epsilon)
    return norm_residual(x + delta, gain, epsilon, delta.dtype)
