"""SwiGLU (Shazeer 2020) of gate and up side by side, as one product computes both.

Shapes: N tokens (of any leading dimensions), I features.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_ELEMENTS, _WARPS = 1024, 4  # of a program


def swiglu(gate_up_ni: Tensor) -> Tensor:
    """Return `silu(gate) · up` of gate and up, (N, 2 I), as (N, I). Computed in fp32."""
    y_ni: Tensor = _forward(gate_up_ni)
    return y_ni


@torch.library.custom_op("llmtrain::swiglu", mutates_args=())
def _forward(gate_up_ni: Tensor) -> Tensor:
    x = gate_up_ni.contiguous()
    y = x.new_empty(_halved(x))
    _swiglu_forward_kernel[_grid(y)](x, y, y.shape[-1], ELEMENTS=_ELEMENTS, num_warps=_WARPS)
    return y


@torch.library.custom_op("llmtrain::swiglu_backward", mutates_args=())
def _backward(d_y_ni: Tensor, gate_up_ni: Tensor) -> Tensor:
    d_y, x = d_y_ni.contiguous(), gate_up_ni.contiguous()
    d_x = torch.empty_like(x)
    _swiglu_backward_kernel[_grid(d_y)](
        d_y, x, d_x, d_y.shape[-1], ELEMENTS=_ELEMENTS, num_warps=_WARPS
    )
    return d_x


def _halved(x: Tensor) -> tuple[int, ...]:
    return (*x.shape[:-1], x.shape[-1] // 2)


def _grid(y: Tensor) -> tuple[int, int]:
    width = y.shape[-1]
    return y.numel() // width, triton.cdiv(width, _ELEMENTS)


@_forward.register_fake
def _(gate_up_ni: Tensor) -> Tensor:
    return gate_up_ni.new_empty(_halved(gate_up_ni))


@_backward.register_fake
def _(d_y_ni: Tensor, gate_up_ni: Tensor) -> Tensor:
    return torch.empty_like(gate_up_ni, memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, d_y: Tensor) -> Tensor:
    d_x: Tensor = _backward(d_y, *ctx.saved_tensors)
    return d_x


_forward.register_autograd(_differentiate, setup_context=_save)


@triton.jit
def _swiglu_forward_kernel(x_ptr, y_ptr, width, ELEMENTS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * ELEMENTS + tl.arange(0, ELEMENTS)
    is_in = column < width
    gate = tl.load(x_ptr + row * 2 * width + column, mask=is_in, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * 2 * width + width + column, mask=is_in, other=0.0).to(tl.float32)
    tl.store(y_ptr + row * width + column, gate * tl.sigmoid(gate) * up, mask=is_in)


@triton.jit
def _swiglu_backward_kernel(d_y_ptr, x_ptr, d_x_ptr, width, ELEMENTS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * ELEMENTS + tl.arange(0, ELEMENTS)
    is_in = column < width
    first = row * 2 * width + column
    gate = tl.load(x_ptr + first, mask=is_in, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + first + width, mask=is_in, other=0.0).to(tl.float32)
    d_y = tl.load(d_y_ptr + row * width + column, mask=is_in, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    slope = sigmoid * (1.0 + gate * (1.0 - sigmoid))
    tl.store(d_x_ptr + first, d_y * up * slope, mask=is_in)
    tl.store(d_x_ptr + first + width, d_y * gate * sigmoid, mask=is_in)
