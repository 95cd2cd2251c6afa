"""A block by native kernels: attention and feed-forward, with norms and residuals.

Weights are fp32, or their bf16 copies beside them; products are in bf16, sums, the residual stream
and all gradients of weights in fp32. The backward computes norms and rotations again; with
selective activation checkpointing gates, too, and with full also attention and what leads to it.

Shapes: B sequences, T tokens, N = B · T, C hidden features, F features of feed-forward, H query
heads, G key heads, D features a head.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llmtrain.choice import ActivationCheckpointing


class NativeNorm(torch.autograd.Function):
    """The root-mean-square norm of fp32 rows, as bf16."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, epsilon: float) -> Tensor:
        """Return `gain · x / rms(x)` over the last dimension."""
        ctx.save_for_backward(x, gain)
        ctx.epsilon = epsilon
        normed_nc: Tensor = torch.ops.llmtrain_native.normalize.default(_rows(x), gain, epsilon)
        return normed_nc.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_normed: Tensor) -> tuple[Tensor, Tensor, None]:
        """Return the gradients of the input and the gain."""
        x, gain = ctx.saved_tensors
        d_x, d_gain = torch.ops.llmtrain_native.normalize_backward.default(
            _rows(d_normed), _rows(x), gain, ctx.epsilon, None
        )
        return d_x.view(x.shape), d_gain, None


class BlockCasts(NamedTuple):
    """The matrices of a block in bf16; those of queries, keys and values one below the other."""

    qkv: Tensor
    o_proj: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor


class HeadsLayout(NamedTuple):
    """Arguments of the operators that rotate and mask heads, in their order."""

    cos_td: Tensor
    sin_td: Tensor
    first_bt: Tensor | None  # the first token that each attends to; None: the window's first
    key_heads: int
    epsilon: float  # of all norms


class NativeBlock(torch.autograd.Function):
    """Attention and SwiGLU, each on a normalised input and added to the residual."""

    @staticmethod
    def forward(
        ctx: Any,
        x_btc: Tensor,
        casts: BlockCasts,
        layout: HeadsLayout,
        checkpointing: ActivationCheckpointing,
        gain: Tensor,
        q_proj: Tensor,
        k_proj: Tensor,
        v_proj: Tensor,
        _o_proj: Tensor,
        feed_gain: Tensor,
        _gate: Tensor,
        _up: Tensor,
        _down: Tensor,
        q_gain: Tensor | None,
        k_gain: Tensor | None,
    ) -> Tensor:
        """Return the residual stream after the block, computed of gains and casts."""
        ctx.casts, ctx.layout = casts, layout
        ctx.sizes = [len(matrix) for matrix in (q_proj, k_proj, v_proj)]
        gains = gain, feed_gain, q_gain, k_gain
        y_btc, *kept = torch.ops.llmtrain_native.block.default(
            x_btc, *_operands(casts, *gains), *layout, checkpointing == "off"
        )
        ctx.save_for_backward(x_btc, *gains, *(kept if checkpointing != "full" else ()))
        result: Tensor = y_btc
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y_btc: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the input and of the weights."""
        x_btc, gain, feed_gain, q_gain, k_gain, *kept = ctx.saved_tensors
        operands = _operands(ctx.casts, gain, feed_gain, q_gain, k_gain)
        d_x, d_gain, d_qkv, *d_rest, d_q_gain, d_k_gain = (
            torch.ops.llmtrain_native.block_backward.default(
                d_y_btc, x_btc, *operands, *ctx.layout, [each for each in kept if each is not None]
            )
        )
        d_gains = (None, None) if q_gain is None else (d_q_gain, d_k_gain)
        return d_x, None, None, None, d_gain, *d_qkv.split(ctx.sizes), *d_rest, *d_gains


def _operands(
    casts: BlockCasts,
    gain: Tensor,
    feed_gain: Tensor,
    q_gain: Tensor | None,
    k_gain: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Return gains and casts in the order of the operators' arguments."""
    return gain, *casts[:2], feed_gain, *casts[2:], q_gain, k_gain


def _rows(x: Tensor) -> Tensor:
    return x.flatten(0, -2).contiguous()
