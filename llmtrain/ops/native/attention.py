"""Causal attention by the native kernels: flash attention (Dao 2023) on a CPU.

Shapes: B sequences, H query heads, G key heads, T tokens, D features a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llmtrain.ops.operator import operator


def native_attention(
    q_bhtd: Tensor, k_bgtd: Tensor, v_bgtd: Tensor, first_bt: Tensor | None = None
) -> Tensor:
    """Return causal attention of queries, keys and values in bf16 or fp32, (B, T, H · D).

    Scores and sums are fp32, probabilities in products as the values are. `first_bt`: int32, the
    first token that each one attends to, not decreasing along T; without it, the first of the
    window.
    """
    y_btc: Tensor = _forward(q_bhtd, k_bgtd, v_bgtd, first_bt)[0]
    return y_btc


@operator("native_attention")
def _forward(
    q_bhtd: Tensor, k_bgtd: Tensor, v_bgtd: Tensor, first_bt: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return attention, and the logarithm of each row's sum of exponentials, to base 2."""
    y_btc, lse_bht = _kernels(q_bhtd).attention(
        _dense(q_bhtd), _dense(k_bgtd), _dense(v_bgtd), first_bt
    )
    return y_btc, lse_bht


@operator("native_attention_backward")
def _backward(
    d_y_btc: Tensor,
    q_bhtd: Tensor,
    k_bgtd: Tensor,
    v_bgtd: Tensor,
    first_bt: Tensor | None,
    y_btc: Tensor,
    lse_bht: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    heads = _dense(q_bhtd), _dense(k_bgtd), _dense(v_bgtd)
    d_q, d_k, d_v = _kernels(q_bhtd).attention_backward(
        d_y_btc.contiguous(), *heads, y_btc.contiguous(), lse_bht.contiguous(), first_bt
    )
    return d_q, d_k, d_v


def _fake_forward(
    q_bhtd: Tensor, k_bgtd: Tensor, v_bgtd: Tensor, first_bt: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    sequences, num_heads, tokens, size = q_bhtd.shape
    return (
        q_bhtd.new_empty(sequences, tokens, num_heads * size),
        q_bhtd.new_empty(sequences, num_heads, tokens, dtype=torch.float32),
    )


torch.library.register_fake(_forward, _fake_forward)


def _fake_backward(
    d_y_btc: Tensor,
    q_bhtd: Tensor,
    k_bgtd: Tensor,
    v_bgtd: Tensor,
    first_bt: Tensor | None,
    y_btc: Tensor,
    lse_bht: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    d_q, d_k, d_v = (torch.empty_like(_dense(x)) for x in (q_bhtd, k_bgtd, v_bgtd))
    return d_q, d_k, d_v


torch.library.register_fake(_backward, _fake_backward)


def _kernels(q_bhtd: Tensor) -> Any:
    """Return the operators for the type of the queries."""
    is_fp32 = q_bhtd.dtype == torch.float32
    return torch.ops.llmtrain_fp32 if is_fp32 else torch.ops.llmtrain_native


def _dense(x: Tensor) -> Tensor:
    """Return `x` with its features next to each other; other strides may be any."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _save(ctx: Any, inputs: tuple[Tensor | None, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs, *output)


def _differentiate(ctx: Any, d_y_btc: Tensor, _d_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    gradients: tuple[Tensor, Tensor, Tensor] = _backward(d_y_btc, *ctx.saved_tensors)
    return *gradients, None


torch.library.register_autograd(_forward, _differentiate, setup_context=_save)

OPERATOR = torch.ops.llmtrain.native_attention.default
