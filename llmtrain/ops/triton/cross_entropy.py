"""Softmax cross-entropy: logits become their own gradient in one launch.

Shapes: C tokens in a chunk, V vocabulary rows.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Measured on an H200, of 8,192 to 65,536 elements and 8 to 32 warps.
_ELEMENTS, _WARPS = 8192, 16
_LOG2_E = 1.4426950408889634


def differentiate_logits(
    logits_cv: Tensor,
    targets_c: Tensor,
    _is_target_c: Tensor | None = None,
    weights_c: Tensor | None = None,
) -> tuple[Tensor, None]:
    """Return the sum of −log softmax(logits)[target]; replace the logits by their gradient.

    Tokens whose target is below 0 do not count; each loss is multiplied by its weight. Sums are in
    fp32. The divisor of the gradient's
    rows, that other ways leave to the caller, is 1.
    """
    rows, vocabulary = logits_cv.shape
    losses_c = torch.empty(rows, dtype=torch.float32, device=logits_cv.device)
    elements = min(_ELEMENTS, triton.next_power_of_2(vocabulary))
    _cross_entropy_kernel[rows,](
        logits_cv, logits_cv.stride(0), targets_c, weights_c, losses_c, vocabulary,
        ELEMENTS=elements, LOG2_E=_LOG2_E, num_warps=_WARPS,
    )  # fmt: skip
    return losses_c.sum(), None


@triton.jit
def _cross_entropy_kernel(
    logits_ptr, stride, targets_ptr, weights_ptr, losses_ptr, vocabulary,
    ELEMENTS: tl.constexpr, LOG2_E: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    target = tl.load(targets_ptr + row)
    weight = 1.0
    if weights_ptr is not None:
        weight = tl.load(weights_ptr + row).to(tl.float32)
    counts = tl.where(target >= 0, weight, 0.0)
    logits_ptr += row.to(tl.int64) * stride
    of_target = tl.load(logits_ptr + tl.maximum(target, 0)).to(tl.float32)
    # to base 2, in which a GPU exponentiates
    largest = -float("inf")
    total = 0.0
    for start in range(0, vocabulary, ELEMENTS):
        column = start + tl.arange(0, ELEMENTS)
        logits = tl.load(logits_ptr + column, mask=column < vocabulary, other=-float("inf"))
        logits = logits.to(tl.float32)
        larger = tl.maximum(largest, tl.max(logits, axis=0) * LOG2_E)
        total *= tl.exp2(largest - larger)
        total += tl.sum(tl.exp2(logits * LOG2_E - larger), axis=0)
        largest = larger
    normaliser = largest + tl.log2(total)
    tl.store(losses_ptr + row, counts * (normaliser / LOG2_E - of_target))
    for start in range(0, vocabulary, ELEMENTS):
        column = start + tl.arange(0, ELEMENTS)
        logits = tl.load(logits_ptr + column, mask=column < vocabulary, other=-float("inf"))
        gradient = tl.exp2(logits.to(tl.float32) * LOG2_E - normaliser)
        gradient = counts * (gradient - tl.where(column == target, 1.0, 0.0))
        tl.store(logits_ptr + column, gradient, mask=column < vocabulary)
