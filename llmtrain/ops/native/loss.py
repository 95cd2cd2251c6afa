"""The cross-entropy of a linear head by the native kernel.

Shapes: N tokens, D hidden features, V vocabulary rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmtrain.ops.chunk_sizes import native_chunk_tokens
from llmtrain.ops.operator import operator


@operator("native_cross_entropy")
def native_cross_entropy(
    hidden_nd: Tensor,
    weight_vd: Tensor,
    targets_n: Tensor,
    has_padding: bool,
    wants_hidden: bool,
    wants_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return −log softmax(hidden · weightᵀ)[target] of each token, and two gradients of the sum.

    Hidden states and weight are bf16; the losses and the weight's gradient are fp32. A gradient
    that is not wanted is empty. With `has_padding`, tokens with a target below 0 do not count.
    """
    chunk = native_chunk_tokens(hidden_nd.shape[0], weight_vd.shape[0])
    losses_n, d_hidden, d_weight = torch.ops.llmtrain_native.linear_cross_entropy(
        hidden_nd.contiguous(),
        weight_vd.contiguous(),
        targets_n.contiguous(),
        chunk,
        has_padding,
        wants_hidden,
        wants_weight,
    )
    return losses_n, d_hidden, d_weight


def _fake_native_cross_entropy(
    hidden_nd: Tensor,
    weight_vd: Tensor,
    targets_n: Tensor,
    has_padding: bool,
    wants_hidden: bool,
    wants_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    tokens, width = hidden_nd.shape
    rows = weight_vd.shape[0] if wants_weight else 0
    return (
        hidden_nd.new_empty(tokens, dtype=torch.float32),
        hidden_nd.new_empty(tokens if wants_hidden else 0, width),
        weight_vd.new_empty(rows, width, dtype=torch.float32),
    )


torch.library.register_fake(native_cross_entropy, _fake_native_cross_entropy)
