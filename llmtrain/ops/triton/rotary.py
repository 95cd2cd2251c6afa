"""Norm of query or key heads and their rotary positions, in one pass over memory.

Shapes: B sequences, T tokens, H heads, D features a head, K = D / 2 pairs of features.
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


@torch.library.custom_op("llmtrain::norm_rotate", mutates_args=())
def _forward(
    x_bthd: Tensor, gain_d: Tensor, cos_tk: Tensor, sin_tk: Tensor, epsilon: float
) -> Tensor:
    x = x_bthd.contiguous()
    y = torch.empty_like(x)
    _, tokens, heads, size = x.shape
    rows = x.numel() // size
    at_once = rows_at_once(_ELEMENTS, size)
    _rotary_forward_kernel[triton.cdiv(rows, at_once),](
        x, y, gain_d, cos_tk, sin_tk, rows, tokens, heads, epsilon,
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
    _, tokens, heads, size = x.shape
    rows = x.numel() // size
    at_once = rows_at_once(_ELEMENTS, size)
    grid = programs(triton.cdiv(rows, at_once), x.device)
    d_gains = torch.empty(grid, size, dtype=torch.float32, device=x.device)
    d_y = d_y_bthd if d_y_bthd.stride(-1) == 1 else d_y_bthd.contiguous()
    _rotary_backward_kernel[grid,](
        d_y, *d_y.stride()[:3], x, d_x, gain_d, d_gains, cos_tk, sin_tk,
        rows, tokens, heads, epsilon,
        SIZE=size, PAIRS=triton.next_power_of_2(size // 2), ROWS=at_once, num_warps=_WARPS,
    )  # fmt: skip
    return d_x, d_gains.sum(0).to(gain_d.dtype)


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


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.epsilon = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:
    d_x, d_gain = _backward(d_y, *ctx.saved_tensors, ctx.epsilon)
    return d_x, d_gain, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)


@triton.jit
def _rotary_forward_kernel(
    x_ptr, y_ptr, gain_ptr, cos_ptr, sin_ptr, rows, tokens, heads, epsilon,
    SIZE: tl.constexpr, PAIRS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    pair = tl.arange(0, PAIRS)[None, :]
    is_in = (row < rows) & (pair < SIZE // 2)
    position = row // heads % tokens
    first = x_ptr + row.to(tl.int64) * SIZE + pair
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
    d_y_ptr, stride_b, stride_t, stride_h, x_ptr, d_x_ptr, gain_ptr, d_gains_ptr,
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
        first = row.to(tl.int64) * SIZE + pair
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
