"""The two halves of a block by native kernels: attention and feed-forward, with norm and residual.

Weights are fp32, or their bf16 copies beside them; products are in bf16, sums, the residual stream
and all gradients of weights in fp32. The backward computes norms, rotations and gates again.

Shapes: B sequences, T tokens, N = B · T, C hidden features, F features of feed-forward, H query
heads, G key heads, D features a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llmtrain.ops.native import attention


class NativeNorm(torch.autograd.Function):
    """The root-mean-square norm of fp32 rows, as bf16."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, epsilon: float) -> Tensor:
        """Return `gain · x / rms(x)` over the last dimension."""
        ctx.save_for_backward(x, gain)
        ctx.epsilon = epsilon
        normed_nc: Tensor = torch.ops.llmtrain_native.normalize(_rows(x), gain, epsilon)
        return normed_nc.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_normed: Tensor) -> tuple[Tensor, Tensor, None]:
        """Return the gradients of the input and the gain."""
        x, gain = ctx.saved_tensors
        d_x, d_gain = torch.ops.llmtrain_native.normalize_backward(
            _rows(d_normed), _rows(x), gain, ctx.epsilon, None
        )
        return d_x.view(x.shape), d_gain, None


class NativeFeedForward(torch.autograd.Function):
    """A pre-norm SwiGLU layer with its residual."""

    @staticmethod
    def forward(
        ctx: Any,
        x_btc: Tensor,
        gain: Tensor,
        gate: Tensor,
        up: Tensor,
        down: Tensor,
        casts: tuple[Tensor, Tensor, Tensor],
        epsilon: float,
    ) -> Tensor:
        """Return `x + down(silu(gate(n(x))) · up(n(x)))`; `casts` are the three weights in bf16."""
        ctx.save_for_backward(x_btc, gain)
        ctx.casts, ctx.epsilon = casts, epsilon
        y_nc: Tensor = torch.ops.llmtrain_native.feed_forward(_rows(x_btc), gain, *casts, epsilon)
        return y_nc.view(x_btc.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y_btc: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the input, the gain and the three weights."""
        x_btc, gain = ctx.saved_tensors
        d_x_nc, *d_weights = torch.ops.llmtrain_native.feed_forward_backward(
            _rows(d_y_btc), _rows(x_btc), gain, *ctx.casts, ctx.epsilon
        )
        return d_x_nc.view(x_btc.shape), *d_weights, None, None


@dataclass(frozen=True, slots=True)
class HeadsLayout:
    """How the rows of queries, keys and values are divided, and what rotates them."""

    key_heads: int
    cos_td: Tensor
    sin_td: Tensor
    first_bt: Tensor | None  # the first token that each attends to; None: the window's first
    epsilon: float  # of query and key norms

    def rotate(self, heads_nd: Tensor, gains: tuple[Tensor | None, Tensor | None]) -> Tensor:
        """Return queries and keys, normed and rotated, of rows of queries, keys and values."""
        rotated_nd: Tensor = torch.ops.llmtrain_native.rotate_heads(
            heads_nd, *gains, self.cos_td, self.sin_td, self.key_heads, self.epsilon
        )
        return rotated_nd

    def rotate_backward(
        self, heads_nd: Tensor, d_heads_nd: Tensor, gains: tuple[Tensor | None, Tensor | None]
    ) -> tuple[Tensor | None, Tensor | None]:
        """Replace the gradient of rotated heads by that of heads; return those of the gains."""
        d_q, d_k = torch.ops.llmtrain_native.rotate_heads_backward(
            heads_nd, d_heads_nd, *gains, self.cos_td, self.sin_td, self.key_heads, self.epsilon
        )
        return (None, None) if gains[0] is None else (d_q, d_k)

    def split(
        self, queries_keys: Tensor, values: Tensor, sequences: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return views (B, heads, T, D) of queries, keys and values, the last heads of rows."""
        size = 2 * self.cos_td.shape[1]
        rotated, all_heads = (
            rows.view(sequences, -1, rows.shape[1] // size, size).transpose(1, 2)
            for rows in (queries_keys, values)
        )
        number = all_heads.shape[1] - 2 * self.key_heads
        keys = slice(number, number + self.key_heads)
        return rotated[:, :number], rotated[:, keys], all_heads[:, number + self.key_heads :]


class NativeAttention(torch.autograd.Function):
    """A pre-norm attention layer with its residual."""

    @staticmethod
    def forward(
        ctx: Any,
        x_btc: Tensor,
        gain: Tensor,
        q_proj: Tensor,
        k_proj: Tensor,
        v_proj: Tensor,
        o_proj: Tensor,
        q_gain: Tensor | None,
        k_gain: Tensor | None,
        casts: tuple[Tensor, Tensor],
        layout: HeadsLayout,
        epsilon: float,
    ) -> Tensor:
        """Return `x + o(attention(n(x)))`.

        `casts`: the weights of queries, keys and values, one below the other, and that of the
        result, in bf16.
        """
        qkv_proj, o_cast = casts
        x_nc = _rows(x_btc)
        normed_nc = torch.ops.llmtrain_native.normalize(x_nc, gain, epsilon)
        heads_nd = normed_nc @ qkv_proj.t()
        rotated_nd = layout.rotate(heads_nd, (q_gain, k_gain))
        q, k, v = layout.split(rotated_nd, heads_nd, x_btc.shape[0])
        attended_btc, lse_bht = attention.OPERATOR(q, k, v, layout.first_bt)
        ctx.save_for_backward(x_btc, gain, q_gain, k_gain, heads_nd, attended_btc, lse_bht)
        ctx.casts, ctx.layout, ctx.epsilon = casts, layout, epsilon
        ctx.sizes = [len(weight) for weight in (q_proj, k_proj, v_proj)]
        y_nc: Tensor = torch.ops.llmtrain_native.add_projection(x_nc, _rows(attended_btc), o_cast)
        return y_nc.view(x_btc.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y_btc: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the input, the gain, four weights and two gains."""
        x_btc, gain, q_gain, k_gain, heads_nd, attended_btc, lse_bht = ctx.saved_tensors
        native, layout, (qkv_proj, o_cast) = torch.ops.llmtrain_native, ctx.layout, ctx.casts
        gains, d_y_nc = (q_gain, k_gain), _rows(d_y_btc)
        d_sum_nc = d_y_nc.to(torch.bfloat16)
        d_attended = (d_sum_nc @ o_cast).view(attended_btc.shape)
        d_o = native.weight_gradient(d_sum_nc, _rows(attended_btc))
        d_heads_nd = torch.empty_like(heads_nd)
        q, k, v = layout.split(layout.rotate(heads_nd, gains), heads_nd, x_btc.shape[0])
        d_parts = layout.split(d_heads_nd, d_heads_nd, x_btc.shape[0])
        native.attention_backward_into(
            d_attended, q, k, v, attended_btc, lse_bht, layout.first_bt, *d_parts
        )
        d_gains = layout.rotate_backward(heads_nd, d_heads_nd, gains)
        normed_nc = native.normalize(_rows(x_btc), gain, ctx.epsilon)
        d_qkv = native.weight_gradient(d_heads_nd, normed_nc).split(ctx.sizes)
        d_x_nc, d_gain = native.normalize_backward(
            d_heads_nd @ qkv_proj, _rows(x_btc), gain, ctx.epsilon, d_y_nc
        )
        return d_x_nc.view(x_btc.shape), d_gain, *d_qkv, d_o, *d_gains, None, None, None


def _rows(x: Tensor) -> Tensor:
    return x.flatten(0, -2).contiguous()
