"""Cross-entropy from hidden states, in chunks, so that full logits are never stored.

Shapes: N tokens, D hidden features, V vocabulary rows; C tokens in a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llmtrain.choice import LossKernel
from llmtrain.ops.chunk_sizes import even_chunk, loss_chunk_tokens
from llmtrain.ops.native.loss import native_cross_entropy
from llmtrain.ops.precision import compute_dtype

# Replaces logits by exp(logit − largest); returns the largest and the sum of each row.
Exponentiate = Callable[[Tensor], tuple[Tensor, Tensor]]
# From logits, targets, which of these count (None: all) and their weights (None: 1): the summed
# loss and a divisor per row (None: 1). Replaces logits by their gradient times the divisor.
Differentiate = Callable[
    [Tensor, Tensor, Tensor | None, Tensor | None], tuple[Tensor, Tensor | None]
]
_CPU_SHARE_BYTES = 4 << 20  # of the head's gradient, multiplied and added while in cache
_CPU_SUMMED_BYTES = 4 << 20  # of logits in fp32, to which a sum of half-precision ones copies


def exponentiate(logits_cv: Tensor) -> tuple[Tensor, Tensor]:
    """Replace logits by exp(logit − row maximum); return maxima and sums, (C, 1) each."""
    largest = logits_cv.amax(dim=-1, keepdim=True)
    logits_cv.sub_(largest).exp_()
    if logits_cv.device.type != "cpu":
        return largest, _row_sums(logits_cv)
    rows = max(1, _CPU_SUMMED_BYTES // (4 * logits_cv.shape[1]))
    return largest, torch.cat([_row_sums(some) for some in torch.split(logits_cv, rows)])


def compiled_exponentiate() -> Exponentiate:
    """Return `exponentiate` as three compiled kernels, each of which reads the logits once.

    One kernel for all would write the exponentials in fp32 to a second buffer to sum them.
    """
    row_maxima = torch.compile(_row_maxima, dynamic=False)
    subtract_and_exp = torch.compile(_subtract_and_exp, dynamic=False)
    row_sums = torch.compile(_row_sums, dynamic=False)

    def run(logits_cv: Tensor) -> tuple[Tensor, Tensor]:
        largest = row_maxima(logits_cv)
        subtract_and_exp(logits_cv, largest)
        return largest, row_sums(logits_cv)

    return run


def _row_maxima(logits_cv: Tensor) -> Tensor:
    return logits_cv.amax(dim=-1, keepdim=True)


def _subtract_and_exp(logits_cv: Tensor, largest_c1: Tensor) -> None:
    wide = torch.promote_types(logits_cv.dtype, torch.float32)
    logits_cv.copy_((logits_cv.to(wide) - largest_c1.to(wide)).exp())


def _row_sums(logits_cv: Tensor) -> Tensor:
    wide = torch.promote_types(logits_cv.dtype, torch.float32)
    return logits_cv.sum(dim=-1, keepdim=True, dtype=wide)


def linear_cross_entropy(
    hidden_nd: Tensor,
    weight_vd: Tensor,
    targets_n: Tensor,
    *,
    weight_cast_vd: Tensor | None = None,
    exponentiate: Exponentiate = exponentiate,
    has_padding: bool = False,
    kernel: LossKernel = "chunks",
    token_weights_n: Tensor | None = None,
) -> Tensor:
    """Return the sum over tokens of −log softmax(hidden · weightᵀ)[target], in nats, fp32.

    Products and logits are in the autocast type; sums and the weight's gradient in fp32 (fp64 for
    fp64 inputs). Memory: one chunk's logits, and one gradient each of hidden states and weight. The
    forward computes both gradients, because it has the softmax; the backward only scales them.
    `weight_cast_vd`: the weight in the autocast type, if the caller has it. With `has_padding`,
    tokens with a target below 0 do not count. The `native` kernel, in bf16, has a loop of its own.
    `token_weights_n`: what each token's loss is multiplied by, which `native` cannot.
    """
    if not torch.is_grad_enabled():  # needs_input_grad does not depend on grad mode
        hidden_nd, weight_vd = hidden_nd.detach(), weight_vd.detach()
    if kernel == "native":
        assert token_weights_n is None, "the native kernel has no weights"
        native: Tensor = _NativeCrossEntropy.apply(  # type: ignore[no-untyped-call]
            hidden_nd, weight_vd, targets_n, weight_cast_vd, has_padding
        )
        return native
    dtype = compute_dtype(hidden_nd)
    limit = loss_chunk_tokens(weight_vd.shape[0], hidden_nd.device.type, dtype.itemsize)
    rows = even_chunk(hidden_nd.shape[0], limit)
    differentiate: Differentiate = partial(_differentiate, exponentiate)
    if kernel == "triton":
        from llmtrain.ops.triton.cross_entropy import differentiate_logits

        differentiate = differentiate_logits
    loss: Tensor = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_nd,
        weight_vd,
        targets_n,
        weight_cast_vd,
        rows,
        dtype,
        differentiate,
        has_padding,
        token_weights_n,
    )
    return loss


@torch.no_grad()
def token_cross_entropy(hidden_nd: Tensor, weight_vd: Tensor, targets_n: Tensor) -> Tensor:
    """Return each token's −log softmax(hidden · weightᵀ)[target], in nats, (N,).

    It is 0 where the target is negative, which is none.
    Products and logits are in the autocast type. Memory: one chunk's logits.
    """
    dtype = compute_dtype(hidden_nd)
    limit = loss_chunk_tokens(weight_vd.shape[0], hidden_nd.device.type, dtype.itemsize)
    rows = even_chunk(hidden_nd.shape[0], limit)
    found = []
    with torch.autocast(hidden_nd.device.type, enabled=False):
        weight, hidden = weight_vd.to(dtype), hidden_nd.to(dtype)
        for h, y in zip(torch.split(hidden, rows), torch.split(targets_n, rows), strict=True):
            losses = _exponentiated_losses(h @ weight.t(), y.clamp_min(0), exponentiate)[0][:, 0]
            found.append(losses.where(y >= 0, 0.0))
    return torch.cat(found)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_nd: Tensor,
        weight_vd: Tensor,
        targets_n: Tensor,
        weight_cast_vd: Tensor | None,
        rows: int,
        dtype: torch.dtype,
        differentiate: Differentiate,
        has_padding: bool,
        token_weights_n: Tensor | None,
    ) -> Tensor:
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        wide = torch.promote_types(dtype, torch.float32)
        total = torch.zeros((), dtype=wide, device=hidden_nd.device)
        d_hidden = torch.empty_like(hidden_nd) if needs_hidden else None
        d_weight = torch.zeros_like(weight_vd, dtype=wide) if needs_weight else None
        with torch.autocast(hidden_nd.device.type, enabled=False):
            weight = weight_vd.to(dtype) if weight_cast_vd is None else weight_cast_vd
            hidden = hidden_nd.to(dtype)
            buffer = hidden.new_empty(rows, weight.shape[0])
            for start in range(0, hidden.shape[0], rows):
                chunk = slice(start, start + rows)
                h, y = hidden[chunk], targets_n[chunk]
                logits = torch.mm(h, weight.t(), out=buffer[: h.shape[0]])
                is_target = y >= 0 if has_padding else None
                weights = None if token_weights_n is None else token_weights_n[chunk].to(wide)
                loss, divisors = differentiate(logits, y, is_target, weights)
                total += loss
                if d_hidden is not None and divisors is None and d_hidden.dtype == dtype:
                    torch.mm(logits, weight, out=d_hidden[chunk])
                elif d_hidden is not None:
                    d_hidden[chunk] = _divided(logits @ weight, divisors, wide)
                if d_weight is not None:
                    _add_product(d_weight, logits, _divided(h, divisors, dtype))
        ctx.gradients = (d_hidden, d_weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_total: Tensor) -> tuple[Tensor | None, ...]:
        return *_scaled_gradients(ctx, d_total), *([None] * 7)


class _NativeCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_nd: Tensor,
        weight_vd: Tensor,
        targets_n: Tensor,
        weight_cast_vd: Tensor | None,
        has_padding: bool,
    ) -> Tensor:
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        weight = weight_vd.to(torch.bfloat16) if weight_cast_vd is None else weight_cast_vd
        hidden = hidden_nd.to(torch.bfloat16)
        losses_n, d_hidden, d_weight = native_cross_entropy(
            hidden, weight, targets_n, has_padding, needs_hidden, needs_weight
        )
        ctx.gradients = (
            d_hidden.to(hidden_nd.dtype) if needs_hidden else None,
            d_weight if needs_weight else None,
        )
        total: Tensor = losses_n.sum()
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_total: Tensor) -> tuple[Tensor | None, ...]:
        return *_scaled_gradients(ctx, d_total), None, None, None


def _scaled_gradients(ctx: Any, d_total: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients that the forward computed, times that of its result."""
    if ctx.gradients is None:
        raise RuntimeError("backward was called twice; the gradients are not kept")
    d_hidden, d_weight = ctx.gradients
    ctx.gradients = None
    if d_hidden is not None:
        d_hidden = d_hidden.mul_(d_total)
    if d_weight is not None:
        d_weight = d_weight.mul_(d_total)
    return d_hidden, d_weight


def _divided(x_cd: Tensor, divisors_c1: Tensor | None, dtype: torch.dtype) -> Tensor:
    return x_cd if divisors_c1 is None else (x_cd / divisors_c1).to(dtype)


def _differentiate(
    exponentiate: Exponentiate,
    logits_cv: Tensor,
    targets_c: Tensor,
    is_target_c: Tensor | None = None,
    weights_c: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the summed loss and a divisor per row; replace logits by their gradient times it.

    Dividing the small operands of later products instead saves a pass over the logits. Rows
    without a target have the divisor infinity.
    """
    if is_target_c is not None:
        targets_c = targets_c.clamp(min=0)
    losses, sums, target_above = _exponentiated_losses(logits_cv, targets_c, exponentiate)
    rows = torch.arange(len(targets_c), device=targets_c.device)
    logits_cv[rows, targets_c] = (target_above.exp() - sums).to(logits_cv.dtype)[:, 0]
    if is_target_c is not None:
        losses = torch.where(is_target_c[:, None], losses, 0.0)
        sums = torch.where(is_target_c[:, None], sums, torch.inf)
    if weights_c is not None:
        losses, sums = losses * weights_c[:, None], sums / weights_c[:, None]
    return losses.sum(), sums


def _exponentiated_losses(
    logits_cv: Tensor, targets_c: Tensor, exponentiate: Exponentiate
) -> tuple[Tensor, Tensor, Tensor]:
    """Return each row's loss, its sum of exponentials, and its target's logit above the maximum.

    Each is (C, 1). The logits are replaced by exp(logit − row maximum).
    """
    target_logits = logits_cv.gather(1, targets_c[:, None])
    largest, sums = exponentiate(logits_cv)
    target_above = target_logits.to(sums.dtype) - largest
    return sums.log() - target_above, sums, target_above


def _add_product(total_vd: Tensor, logits_cv: Tensor, hidden_cd: Tensor) -> None:
    """Add `logitsᵀ · hidden` to the total, on a CPU in shares that fit its cache.

    A GPU's product in half precision adds in fp32 by itself, unrounded.
    """
    if logits_cv.device.type == "cuda" and total_vd.dtype != logits_cv.dtype:
        torch.addmm(total_vd, logits_cv.t(), hidden_cd, out_dtype=total_vd.dtype, out=total_vd)
        return
    for share in _shares(total_vd, hidden_cd.element_size()):
        total_vd[share].add_(logits_cv[:, share].t() @ hidden_cd)


def _shares(total_vd: Tensor, element_bytes: int) -> Iterator[slice]:
    rows, width = total_vd.shape
    share = rows
    if total_vd.device.type == "cpu":
        share = max(1, _CPU_SHARE_BYTES // (width * element_bytes))
    return (slice(start, start + share) for start in range(0, rows, share))
