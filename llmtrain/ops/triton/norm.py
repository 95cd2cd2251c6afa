"""Root-mean-square norms of the residual stream, with what is added to it, in one pass each.

Shapes: N tokens (of any leading dimensions), C features.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmtrain.ops.triton.launch import programs, rows_at_once, warps

_ELEMENTS = 1024  # of a tile, rows × features: measured on an H200, of 1,024 to 8,192


def norm_residual(
    x_nc: Tensor, gain_c: Tensor, epsilon: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return `x`, and it normalised and times a gain as `dtype`.

    Use the first result for what is added to the stream: then one pass computes its gradient.
    """
    kept, normed = _NormResidual.apply(x_nc, gain_c, epsilon, dtype)
    return kept, normed


def add_norm_residual(
    x_nc: Tensor, delta_nc: Tensor, gain_c: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """Return `x + delta`, and it normalised and times a gain in the type of `delta`."""
    summed, normed, _ = _add_norm(x_nc, delta_nc, gain_c, epsilon)
    return summed, normed


class _NormResidual(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gain: Tensor, epsilon: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        normed, rstd = _norm(x, gain, epsilon, dtype)
        ctx.save_for_backward(x, rstd, gain)
        return x.view_as(x), normed

    @staticmethod
    def backward(ctx: Any, d_x: Tensor, d_normed: Tensor) -> tuple[Tensor | None, ...]:
        x, rstd, gain = ctx.saved_tensors
        d, _, d_gain = _norm_backward(d_x, d_normed, x, rstd, gain, x.dtype)
        return d, d_gain, None, None


@torch.library.custom_op("llmtrain::norm_residual", mutates_args=())
def _norm(
    x_nc: Tensor, gain_c: Tensor, epsilon: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the normed stream, and the reciprocal root mean square of each token."""
    x = x_nc.contiguous()
    normed = torch.empty_like(x, dtype=dtype)
    rstd = x.new_empty(x.shape[:-1], dtype=torch.float32)
    _launch(x, x, x, normed, rstd, gain_c, epsilon, adds=False)
    return normed, rstd


@torch.library.custom_op("llmtrain::add_norm_residual", mutates_args=())
def _add_norm(
    x_nc: Tensor, delta_nc: Tensor, gain_c: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sum, the normed sum, and the reciprocal root mean square of each token."""
    x, delta = x_nc.contiguous(), delta_nc.contiguous()
    summed, normed = torch.empty_like(x), torch.empty_like(delta)
    rstd = x.new_empty(x.shape[:-1], dtype=torch.float32)
    _launch(x, delta, summed, normed, rstd, gain_c, epsilon, adds=True)
    return summed, normed, rstd


@torch.library.custom_op("llmtrain::norm_residual_backward", mutates_args=())
def _norm_backward(
    d_x_nc: Tensor,
    d_normed_nc: Tensor,
    x_nc: Tensor,
    rstd_n: Tensor,
    gain_c: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient of the normed stream, it as `dtype`, and that of the gain."""
    d_x, d_normed, x = d_x_nc.contiguous(), d_normed_nc.contiguous(), x_nc.contiguous()
    d, width = torch.empty_like(x), x.shape[-1]
    copies = dtype != x.dtype
    cast = torch.empty_like(x, dtype=dtype) if copies else x.new_empty(0)
    rows = x.numel() // width
    columns = triton.next_power_of_2(width)
    at_once = rows_at_once(_ELEMENTS, columns)
    grid = programs(triton.cdiv(rows, at_once), x.device)
    d_gains = torch.empty(grid, width, dtype=torch.float32, device=x.device)
    _norm_backward_kernel[grid,](
        d_x, d_normed, x, rstd_n, gain_c, d, cast, d_gains, rows,
        WIDTH=width, COLUMNS=columns, ROWS=at_once, COPIES=copies, num_warps=warps(columns),
    )  # fmt: skip
    return d, cast, d_gains.sum(0).to(gain_c.dtype)


def _launch(
    x: Tensor,
    delta: Tensor,
    summed: Tensor,
    normed: Tensor,
    rstd: Tensor,
    gain: Tensor,
    epsilon: float,
    *,
    adds: bool,
) -> None:
    width = x.shape[-1]
    rows = x.numel() // width
    columns = triton.next_power_of_2(width)
    at_once = rows_at_once(_ELEMENTS, columns)
    _norm_forward_kernel[triton.cdiv(rows, at_once),](
        x, delta, summed, normed, rstd, gain, rows, epsilon,
        WIDTH=width, COLUMNS=columns, ROWS=at_once, ADDS=adds, num_warps=warps(columns),
    )  # fmt: skip


@_norm.register_fake
def _(x_nc: Tensor, gain_c: Tensor, epsilon: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    normed = torch.empty_like(x_nc, dtype=dtype, memory_format=torch.contiguous_format)
    return normed, x_nc.new_empty(x_nc.shape[:-1], dtype=torch.float32)


@_add_norm.register_fake
def _(
    x_nc: Tensor, delta_nc: Tensor, gain_c: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    summed = torch.empty_like(x_nc, memory_format=torch.contiguous_format)
    normed = torch.empty_like(delta_nc, memory_format=torch.contiguous_format)
    return summed, normed, x_nc.new_empty(x_nc.shape[:-1], dtype=torch.float32)


@_norm_backward.register_fake
def _(
    d_x_nc: Tensor,
    d_normed_nc: Tensor,
    x_nc: Tensor,
    rstd_n: Tensor,
    gain_c: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    d = torch.empty_like(x_nc, memory_format=torch.contiguous_format)
    cast = x_nc.new_empty(x_nc.shape if dtype != x_nc.dtype else (0,), dtype=dtype)
    return d, cast, torch.empty_like(gain_c)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, delta, gain, _ = inputs
    summed, _, rstd = output
    ctx.dtype = delta.dtype
    ctx.save_for_backward(summed, rstd, gain)


def _differentiate(
    ctx: Any, d_summed: Tensor, d_normed: Tensor, d_rstd: Tensor
) -> tuple[Tensor | None, ...]:
    summed, rstd, gain = ctx.saved_tensors
    d, cast, d_gain = _norm_backward(d_summed, d_normed, summed, rstd, gain, ctx.dtype)
    return d, cast if ctx.dtype != d.dtype else d, d_gain, None


_add_norm.register_autograd(_differentiate, setup_context=_save)


@triton.jit
def _norm_forward_kernel(
    x_ptr, delta_ptr, summed_ptr, normed_ptr, rstd_ptr, gain_ptr, rows, epsilon,
    WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, ADDS: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    is_in = (row < rows) & (column < WIDTH)
    at = row.to(tl.int64) * WIDTH + column
    x = tl.load(x_ptr + at, mask=is_in, other=0.0).to(tl.float32)
    if ADDS:
        x += tl.load(delta_ptr + at, mask=is_in, other=0.0).to(tl.float32)
        x = x.to(summed_ptr.dtype.element_ty)
        tl.store(summed_ptr + at, x, mask=is_in)
        x = x.to(tl.float32)
    rstd = tl.rsqrt(tl.sum(x * x, axis=1)[:, None] / WIDTH + epsilon)
    gain = tl.load(gain_ptr + column, mask=column < WIDTH, other=0.0)
    tl.store(normed_ptr + at, x * rstd * gain, mask=is_in)
    tl.store(rstd_ptr + row, rstd, mask=row < rows)


@triton.jit
def _norm_backward_kernel(
    d_x_ptr, d_normed_ptr, x_ptr, rstd_ptr, gain_ptr, d_ptr, cast_ptr, d_gains_ptr, rows,
    WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, COPIES: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, COLUMNS)[None, :]
    in_width = column < WIDTH
    gain = tl.load(gain_ptr + column, mask=in_width, other=0.0)
    d_gain = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS):
        row = (start + tl.arange(0, ROWS))[:, None]
        is_in = (row < rows) & in_width
        at = row.to(tl.int64) * WIDTH + column
        rstd = tl.load(rstd_ptr + row, mask=row < rows, other=0.0)
        normal = tl.load(x_ptr + at, mask=is_in, other=0.0).to(tl.float32) * rstd
        d_normed = tl.load(d_normed_ptr + at, mask=is_in, other=0.0).to(tl.float32)
        d_gain += d_normed * normal
        d_normed *= gain
        along = tl.sum(d_normed * normal, axis=1)[:, None] / WIDTH
        d = tl.load(d_x_ptr + at, mask=is_in, other=0.0).to(tl.float32)
        d += (d_normed - normal * along) * rstd
        tl.store(d_ptr + at, d, mask=is_in)
        if COPIES:
            tl.store(cast_ptr + at, d, mask=is_in)
    into = d_gains_ptr + tl.program_id(0) * WIDTH + tl.arange(0, COLUMNS)
    tl.store(into, tl.sum(d_gain, axis=0), mask=tl.arange(0, COLUMNS) < WIDTH)
