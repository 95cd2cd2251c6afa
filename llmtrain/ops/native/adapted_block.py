"""A block by native kernels whose matrices stay as they are, beside adapters that are trained.

The matrices are bf16, adapters fp32 and multiplied in bf16; sums and the residual stream are fp32.
The backward computes norms, rotations, gates and what adapters are multiplied by again; where
nothing is kept for it, attention and what leads to it, too.

Shapes: M × K a matrix, R × K and M × R its adapter, A and B; with a rank R of 0 it has none.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llmtrain.ops.native.block import HeadsLayout


class AdaptedMatrices(NamedTuple):
    """The matrices of queries, keys, values, output, gate, up and down, with adapters, all bf16."""

    weights: list[Tensor]
    a: list[Tensor]
    b: list[Tensor]
    scale: float


class Gains(NamedTuple):
    """The gains of the block's norms, which stay."""

    attention: Tensor
    feed_forward: Tensor
    queries: Tensor | None
    keys: Tensor | None


class NativeAdaptedBlock(torch.autograd.Function):
    """Attention and SwiGLU, each on a normalised input and added to the residual."""

    @staticmethod
    def forward(
        ctx: Any,
        x_btc: Tensor,
        matrices: AdaptedMatrices,
        gains: Gains,
        layout: HeadsLayout,
        keeps: bool,
        *_adapters: Tensor | None,
    ) -> Tensor:
        """Return the residual stream after the block.

        `_adapters`: A and B of each matrix in turn, for autograd; None where a matrix has none.
        """
        ctx.matrices, ctx.gains, ctx.layout = matrices, gains, layout
        y_btc, *kept = torch.ops.llmtrain_native.adapted_block.default(
            x_btc, *matrices, *gains, *layout
        )
        ctx.save_for_backward(x_btc, *(kept if keeps else ()))
        result: Tensor = y_btc
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y_btc: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the input and of adapters."""
        x_btc, *kept = ctx.saved_tensors
        d_x, d_a, d_b = torch.ops.llmtrain_native.adapted_block_backward.default(
            d_y_btc, x_btc, *ctx.matrices, *ctx.gains, *ctx.layout, kept
        )
        pairs = zip(d_a, d_b, ctx.matrices.a, strict=True)
        d_adapters = [d if len(a) else None for one, other, a in pairs for d in (one, other)]
        return d_x, None, None, None, None, *d_adapters
