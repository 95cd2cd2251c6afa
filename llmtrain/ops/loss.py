"""Cross-entropy straight from hidden states, in chunks, so that full logits never exist.

Shapes: N tokens, D hidden features, V vocabulary rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llmtrain.device.memory import loss_chunk_tokens
from llmtrain.ops.precision import compute_dtype


def linear_cross_entropy(hidden_nd: Tensor, weight_vd: Tensor, targets_n: Tensor) -> Tensor:
    """Sum over tokens of −log softmax(hidden · weightᵀ)[target], in nats: an fp32 scalar.

    Products run in the autocast type; the softmax, the sum and the weight's gradient in fp32
    (fp64 for fp64 inputs). Memory is that of one chunk's logits, plus one gradient each of the
    hidden states and the weight, which the forward already computes: the softmax is at hand
    there, and the backward only scales.
    """
    if not torch.is_grad_enabled():  # a Function is told who could want one, not if
        hidden_nd, weight_vd = hidden_nd.detach(), weight_vd.detach()
    rows = loss_chunk_tokens(weight_vd.shape[0], hidden_nd.device.type)
    dtype = compute_dtype(hidden_nd)
    loss: Tensor = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_nd, weight_vd, targets_n, rows, dtype
    )
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_nd: Tensor,
        weight_vd: Tensor,
        targets_n: Tensor,
        rows: int,
        dtype: torch.dtype,
    ) -> Tensor:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        wide = torch.promote_types(dtype, torch.float32)
        total = torch.zeros((), dtype=wide, device=hidden_nd.device)
        d_hidden = torch.empty_like(hidden_nd) if wants_hidden else None
        d_weight = torch.zeros_like(weight_vd, dtype=wide) if wants_weight else None
        with torch.autocast(hidden_nd.device.type, enabled=False):
            weight = weight_vd.to(dtype)
            for start in range(0, hidden_nd.shape[0], rows):
                chunk = slice(start, start + rows)
                h, y = hidden_nd[chunk].to(dtype), targets_n[chunk, None]
                logits = (h @ weight.t()).to(wide)
                log_norm = logits.logsumexp(dim=-1, keepdim=True)
                total += (log_norm - logits.gather(1, y)).sum()
                if d_hidden is None and d_weight is None:
                    continue
                probabilities = logits.sub_(log_norm).exp_()
                d_logits = probabilities.scatter_add_(1, y, -torch.ones_like(log_norm)).to(dtype)
                if d_hidden is not None:
                    d_hidden[chunk] = d_logits @ weight
                if d_weight is not None:
                    d_weight += d_logits.t() @ h
        ctx.gradients = (d_hidden, d_weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_total: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the gradients were handed out in the backward before this one")
        d_hidden, d_weight = ctx.gradients
        ctx.gradients = None
        if d_hidden is not None:
            d_hidden = d_hidden.mul_(d_total)
        if d_weight is not None:
            d_weight = d_weight.mul_(d_total)
        return d_hidden, d_weight, None, None, None
