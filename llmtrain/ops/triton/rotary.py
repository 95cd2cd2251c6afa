"""Norm of query or key heads and their rotary positions, in one pass over memory.

Shapes: B sequences, T tokens, H heads, G key heads, D features a head, K = D / 2 pairs of
features, W = (H + 2 G) · D features of query, key and value side by side.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmtrain.ops.triton.launch import programs, rows_at_once

# Of a tile, rows of heads × features: measured on an H200, of 1,024 to 8,192 and 2 to 8 warps.
_ELEMENTS, _WARPS = 1024, 2


def norm_rotate(
    x_bthd: Tensor, gain_d: Tensor, epsilon: float, cos_tk: Tensor, sin_tk: Tensor
) -> Tensor:
    """Return heads normalised to a root mean square of 1, times a gain, and rotated.

    As `rotate(rms_norm(x))`, (B, T, H, D), computed in fp32 and rounded once, to the type of `x`.
    """
    y_bthd: Tensor = _forward(x_bthd, gain_d, cos_tk, sin_tk, epsilon)
    return y_bthd


def split_norm_rotate(
    qkv_btw: Tensor,
    q_gain_d: Tensor,
    k_gain_d: Tensor,
    epsilon: float,
    cos_tk: Tensor,
    sin_tk: Tensor,
    heads: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return query and key of one product, each as `norm_rotate` does, and value, which is a view.

    (B, T, H, D), and twice (B, T, G, D). The gradients of the three are written side by side, as
    the backward of the product reads them.
    """
    q, k, v = _SplitNormRotate.apply(qkv_btw, q_gain_d, k_gain_d, cos_tk, sin_tk, epsilon, heads)
    return q, k, v


class _SplitNormRotate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        q_gain: Tensor,
        k_gain: Tensor,
        cos: Tensor,
        sin: Tensor,
        epsilon: float,
        heads: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        q, k = _split_forward(qkv, q_gain, k_gain, cos, sin, epsilon, heads)
        ctx.save_for_backward(qkv, q_gain, k_gain, cos, sin)
        ctx.epsilon = epsilon
        return q, k, _heads(qkv, q_gain)[:, :, heads + k.shape[2] :]

    @staticmethod
    def backward(ctx: Any, d_q: Tensor, d_k: Tensor, d_v: Tensor) -> tuple[Tensor | None, ...]:
        found = _split_backward(d_q, d_k, d_v, *ctx.saved_tensors, ctx.epsilon)
        return *found, None, None, None, None


@torch.library.custom_op("llmtrain::norm_rotate", mutates_args=())
def _forward(
    x_bthd: Tensor, gain_d: Tensor, cos_tk: Tensor, sin_tk: Tensor, epsilon: float
) -> Tensor:
    return _rotated(x_bthd.contiguous(), gain_d, cos_tk, sin_tk, epsilon)


@torch.library.custom_op("llmtrain::split_norm_rotate", mutates_args=())
def _split_forward(
    qkv_btw: Tensor,
    q_gain_d: Tensor,
    k_gain_d: Tensor,
    cos_tk: Tensor,
    sin_tk: Tensor,
    epsilon: float,
    heads: int,
) -> tuple[Tensor, Tensor]:
    every = _heads(qkv_btw.contiguous(), q_gain_d)
    q, k, _ = every.tensor_split(_bounds(every, heads), dim=2)
    table = cos_tk, sin_tk, epsilon
    return _rotated(q, q_gain_d, *table), _rotated(k, k_gain_d, *table)


def _heads(x_btw: Tensor, gain_d: Tensor) -> Tensor:
    heads: Tensor = x_btw.unflatten(-1, (-1, gain_d.shape[0]))
    return heads


def _bounds(every_bthd: Tensor, heads: int) -> tuple[int, int]:
    """Return where the heads of keys begin, and those of values."""
    return heads, heads + (every_bthd.shape[2] - heads) // 2


def _rotated(
    x_bthd: Tensor, gain_d: Tensor, cos_tk: Tensor, sin_tk: Tensor, epsilon: float
) -> Tensor:
    """Return heads normalised and rotated; those of a token are contiguous, tokens evenly apart."""
    y = torch.empty_like(x_bthd, memory_format=torch.contiguous_format)
    _, tokens, heads, size = x_bthd.shape
    rows = x_bthd.numel() // size
    at_once = rows_at_once(_ELEMENTS, size)
    _rotary_forward_kernel[triton.cdiv(rows, at_once),](
        x_bthd, x_bthd.stride(1), y, gain_d, cos_tk, sin_tk, rows, tokens, heads, epsilon,
        SIZE=size, PAIRS=triton.next_power_of_2(size // 2), ROWS=at_once, num_warps=_WARPS,
    )  # fmt: skip
    return y


@torch.library.custom_op("llmtrain::norm_rotate_backward", mutates_args=())
def _backward(
    d_y_bthd: Tensor,
    x_bthd: Tensor,
    gain_d: Tensor,
    cos_tk: Tensor,
    sin_tk: Tensor,
    epsilon: float,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the heads and of the gain."""
    x = x_bthd.contiguous()
    d_x = torch.empty_like(x)
    return d_x, _differentiate_into(d_x, d_y_bthd, x, gain_d, cos_tk, sin_tk, epsilon)


@torch.library.custom_op("llmtrain::split_norm_rotate_backward", mutates_args=())
def _split_backward(
    d_q_bthd: Tensor,
    d_k_btgd: Tensor,
    d_v_btgd: Tensor,
    qkv_btw: Tensor,
    q_gain_d: Tensor,
    k_gain_d: Tensor,
    cos_tk: Tensor,
    sin_tk: Tensor,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and value side by side, and of both gains."""
    x = qkv_btw.contiguous()
    d_x = torch.empty_like(x)
    bounds = _bounds(_heads(x, q_gain_d), d_q_bthd.shape[2])
    q, k, _ = _heads(x, q_gain_d).tensor_split(bounds, dim=2)
    d_q, d_k, d_v = _heads(d_x, q_gain_d).tensor_split(bounds, dim=2)
    table = cos_tk, sin_tk, epsilon
    d_q_gain = _differentiate_into(d_q, d_q_bthd, q, q_gain_d, *table)
    d_k_gain = _differentiate_into(d_k, d_k_btgd, k, k_gain_d, *table)
    d_v.copy_(d_v_btgd)
    return d_x, d_q_gain, d_k_gain


def _differentiate_into(
    d_x_bthd: Tensor,
    d_y_bthd: Tensor,
    x_bthd: Tensor,
    gain_d: Tensor,
    cos_tk: Tensor,
    sin_tk: Tensor,
    epsilon: float,
) -> Tensor:
    """Write the gradient of the heads, which lie as the heads do; return that of the gain."""
    _, tokens, heads, size = x_bthd.shape
    rows = x_bthd.numel() // size
    at_once = rows_at_once(_ELEMENTS, size)
    grid = programs(triton.cdiv(rows, at_once), x_bthd.device)
    d_gains = torch.empty(grid, size, dtype=torch.float32, device=x_bthd.device)
    d_y = d_y_bthd if d_y_bthd.stride(-1) == 1 else d_y_bthd.contiguous()
    _rotary_backward_kernel[grid,](
        d_y, *d_y.stride()[:3], x_bthd, d_x_bthd, x_bthd.stride(1), gain_d, d_gains,
        cos_tk, sin_tk, rows, tokens, heads, epsilon,
        SIZE=size, PAIRS=triton.next_power_of_2(size // 2), ROWS=at_once, num_warps=_WARPS,
    )  # fmt: skip
    return d_gains.sum(0).to(gain_d.dtype)


@_forward.register_fake
def _(x_bthd: Tensor, gain_d: Tensor, cos_tk: Tensor, sin_tk: Tensor, epsilon: float) -> Tensor:
    return torch.empty_like(x_bthd, memory_format=torch.contiguous_format)


@_backward.register_fake
def _(
    d_y_bthd: Tensor,
    x_bthd: Tensor,
    gain_d: Tensor,
    cos_tk: Tensor,
    sin_tk: Tensor,
    epsilon: float,
) -> tuple[Tensor, Tensor]:
    d_x = torch.empty_like(x_bthd, memory_format=torch.contiguous_format)
    return d_x, torch.empty_like(gain_d)


@_split_forward.register_fake
def _(
    qkv_btw: Tensor,
    q_gain_d: Tensor,
    k_gain_d: Tensor,
    cos_tk: Tensor,
    sin_tk: Tensor,
    epsilon: float,
    heads: int,
) -> tuple[Tensor, Tensor]:
    size, (begin, end) = q_gain_d.shape[0], _bounds(_heads(qkv_btw, q_gain_d), heads)
    leading = qkv_btw.shape[:2]
    return (
        qkv_btw.new_empty((*leading, heads, size)),
        qkv_btw.new_empty((*leading, end - begin, size)),
    )


@_split_backward.register_fake
def _(
    d_q_bthd: Tensor,
    d_k_btgd: Tensor,
    d_v_btgd: Tensor,
    qkv_btw: Tensor,
    q_gain_d: Tensor,
    k_gain_d: Tensor,
    cos_tk: Tensor,
    sin_tk: Tensor,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]:
    d_x = torch.empty_like(qkv_btw, memory_format=torch.contiguous_format)
    return d_x, torch.empty_like(q_gain_d), torch.empty_like(k_gain_d)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.epsilon = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:
    d_x, d_gain = _backward(d_y, *ctx.saved_tensors, ctx.epsilon)
    return d_x, d_gain, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)


@triton.jit
def _rotary_forward_kernel(
    x_ptr, x_stride, y_ptr, gain_ptr, cos_ptr, sin_ptr, rows, tokens, heads, epsilon,
    SIZE: tl.constexpr, PAIRS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    pair = tl.arange(0, PAIRS)[None, :]
    is_in = (row < rows) & (pair < SIZE // 2)
    position = row // heads % tokens
    first = x_ptr + (row // heads).to(tl.int64) * x_stride + row % heads * SIZE + pair
    a = tl.load(first, mask=is_in, other=0.0).to(tl.float32)
    b = tl.load(first + SIZE // 2, mask=is_in, other=0.0).to(tl.float32)
    rstd = tl.rsqrt(tl.sum(a * a + b * b, axis=1)[:, None] / SIZE + epsilon)
    in_size = pair < SIZE // 2
    a = a * rstd * tl.load(gain_ptr + pair, mask=in_size, other=0.0)
    b = b * rstd * tl.load(gain_ptr + pair + SIZE // 2, mask=in_size, other=0.0)
    angle = position * (SIZE // 2) + pair
    cos = tl.load(cos_ptr + angle, mask=is_in, other=0.0)
    sin = tl.load(sin_ptr + angle, mask=is_in, other=0.0)
    out = y_ptr + row.to(tl.int64) * SIZE + pair
    tl.store(out, a * cos - b * sin, mask=is_in)
    tl.store(out + SIZE // 2, b * cos + a * sin, mask=is_in)


@triton.jit
def _rotary_backward_kernel(
    d_y_ptr, stride_b, stride_t, stride_h, x_ptr, d_x_ptr, x_stride, gain_ptr, d_gains_ptr,
    cos_ptr, sin_ptr, rows, tokens, heads, epsilon,
    SIZE: tl.constexpr, PAIRS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    pair = tl.arange(0, PAIRS)[None, :]
    in_size = pair < SIZE // 2
    gain_a = tl.load(gain_ptr + pair, mask=in_size, other=0.0)
    gain_b = tl.load(gain_ptr + pair + SIZE // 2, mask=in_size, other=0.0)
    sum_a = tl.zeros([ROWS, PAIRS], tl.float32)
    sum_b = tl.zeros([ROWS, PAIRS], tl.float32)
    for start in range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS):
        row = (start + tl.arange(0, ROWS))[:, None]
        is_in = (row < rows) & in_size
        token = row // heads
        d_row = (
            (token // tokens).to(tl.int64) * stride_b
            + (token % tokens).to(tl.int64) * stride_t
            + (row % heads).to(tl.int64) * stride_h
        )
        d_a = tl.load(d_y_ptr + d_row + pair, mask=is_in, other=0.0).to(tl.float32)
        d_b = tl.load(d_y_ptr + d_row + pair + SIZE // 2, mask=is_in, other=0.0).to(tl.float32)
        angle = token % tokens * (SIZE // 2) + pair
        cos = tl.load(cos_ptr + angle, mask=is_in, other=0.0)
        sin = tl.load(sin_ptr + angle, mask=is_in, other=0.0)
        d_rotated_a = d_a * cos + d_b * sin
        d_rotated_b = d_b * cos - d_a * sin
        first = token.to(tl.int64) * x_stride + row % heads * SIZE + pair
        a = tl.load(x_ptr + first, mask=is_in, other=0.0).to(tl.float32)
        b = tl.load(x_ptr + first + SIZE // 2, mask=is_in, other=0.0).to(tl.float32)
        rstd = tl.rsqrt(tl.sum(a * a + b * b, axis=1)[:, None] / SIZE + epsilon)
        a *= rstd
        b *= rstd
        sum_a += d_rotated_a * a
        sum_b += d_rotated_b * b
        d_a = d_rotated_a * gain_a
        d_b = d_rotated_b * gain_b
        along = tl.sum(d_a * a + d_b * b, axis=1)[:, None] / SIZE
        tl.store(d_x_ptr + first, (d_a - a * along) * rstd, mask=is_in)
        tl.store(d_x_ptr + first + SIZE // 2, (d_b - b * along) * rstd, mask=is_in)
    into = d_gains_ptr + tl.program_id(0) * SIZE + tl.arange(0, PAIRS)
    tl.store(into, tl.sum(sum_a, axis=0), mask=tl.arange(0, PAIRS) < SIZE // 2)
    tl.store(into + SIZE // 2, tl.sum(sum_b, axis=0), mask=tl.arange(0, PAIRS) < SIZE // 2)
