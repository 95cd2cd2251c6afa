"""Cross-entropy straight from hidden states, in chunks, so that full logits never exist.

Shapes: N tokens, D hidden features, V vocabulary rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llmtrain.device.memory import loss_chunk_tokens
from llmtrain.ops.precision import compute_dtype

SoftmaxLoss = Callable[[Tensor, Tensor, torch.dtype], tuple[Tensor, Tensor]]


def softmax_loss(
    logits_nv: Tensor, targets_n1: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Summed loss and its gradient as `dtype`; wide logits are overwritten on the way."""
    log_norm = logits_nv.logsumexp(dim=-1, keepdim=True)
    loss = (log_norm - logits_nv.gather(1, targets_n1)).sum()
    probabilities = logits_nv.sub_(log_norm).exp_()
    minus_one = -torch.ones_like(log_norm)
    return loss, probabilities.scatter_add_(1, targets_n1, minus_one).to(dtype)


def fusible_softmax_loss(
    logits_nv: Tensor, targets_n1: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The same without writing in place, so that a compiler makes two passes of it."""
    log_norm = logits_nv.logsumexp(dim=-1, keepdim=True)
    loss = (log_norm - logits_nv.gather(1, targets_n1)).sum()
    columns = torch.arange(logits_nv.shape[-1], device=logits_nv.device)
    is_target = (columns == targets_n1).to(logits_nv.dtype)
    return loss, ((logits_nv - log_norm).exp() - is_target).to(dtype)


def linear_cross_entropy(
    hidden_nd: Tensor,
    weight_vd: Tensor,
    targets_n: Tensor,
    softmax: SoftmaxLoss = softmax_loss,
) -> Tensor:
    """Sum over tokens of −log softmax(hidden · weightᵀ)[target], in nats: an fp32 scalar.

    Products run in the autocast type; the softmax, the sum and the weight's gradient in fp32
    (fp64 for fp64 inputs). Memory is that of one chunk's logits, plus one gradient each of the
    hidden states and the weight, which the forward already computes: the softmax is at hand
    there, and the backward only scales.
    """
    if not torch.is_grad_enabled():  # a Function is told who could want one, not if
        hidden_nd, weight_vd = hidden_nd.detach(), weight_vd.detach()
    limit = loss_chunk_tokens(weight_vd.shape[0], hidden_nd.device.type)
    rows = even_chunk(hidden_nd.shape[0], limit)
    dtype = compute_dtype(hidden_nd)
    loss: Tensor = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_nd, weight_vd, targets_n, rows, dtype, softmax
    )
    return loss


def even_chunk(rows: int, limit: int) -> int:
    """A size of at most `limit` that cuts `rows` into equal chunks, where one is near it."""
    fewest = -(-rows // limit)
    even = (rows // count for count in range(fewest, 2 * fewest + 1) if rows % count == 0)
    return max(1, next(even, limit))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_nd: Tensor,
        weight_vd: Tensor,
        targets_n: Tensor,
        rows: int,
        dtype: torch.dtype,
        softmax: SoftmaxLoss,
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
                if d_hidden is None and d_weight is None:
                    total += (logits.logsumexp(dim=-1, keepdim=True) - logits.gather(1, y)).sum()
                    continue
                loss, d_logits = softmax(logits, y, dtype)
                total += loss
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
        return d_hidden, d_weight, None, None, None, None
