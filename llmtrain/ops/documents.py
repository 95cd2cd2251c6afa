"""Masks that keep attention within documents.

A document is a separator and its tokens, so the last token of one is the one whose target is a
separator. That target counts in the loss: from it a model learns where a text ends. Later tokens
do not attend to anything before it, so a window of several documents gives what each would give
alone; rotary positions need no reset, because only their differences enter attention.

Shapes: B sequences, T tokens.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from llmtrain.choice import AttentionKernel
from llmtrain.ops.document_blocks import document_blocks

# In the form that the attention kernel takes.
DocumentMask: TypeAlias = "Tensor | BlockMask"


def first_of_document(targets_bt: Tensor, separator_id: int) -> Tensor:
    """Return for each token the first one of its document in the window, int32 (B, T)."""
    sequences, tokens = targets_bt.shape
    positions = torch.arange(1, tokens, dtype=torch.int32, device=targets_bt.device)
    first_bt = positions.new_zeros((sequences, tokens))
    ends = targets_bt[:, :-1] == separator_id
    first_bt[:, 1:] = torch.where(ends, positions, 0)
    return first_bt.cummax(dim=1).values


def document_mask(kernel: AttentionKernel, first_bt: Tensor, dtype: torch.dtype) -> DocumentMask:
    """Return the `documents` of `causal_attention` by `kernel`, for queries of `dtype`.

    Our own kernels take `first_bt` itself, and FlexAttention a block mask. torch's other kernels
    take an additive mask of all pairs of tokens, (B, 1, T, T), shared by all layers and in the
    queries' type, because they would convert any other. Evaluation uses it too: it is eager, and
    FlexAttention computes all scores unless compiled.
    """
    if kernel in ("blocks", "native"):
        return first_bt
    if kernel == "flex" and torch.is_grad_enabled():
        return document_blocks(first_bt)
    tokens, device = first_bt.shape[1], first_bt.device
    keys = torch.arange(tokens, dtype=torch.int32, device=device)
    before = keys < first_bt[:, None, :, None]
    mask = torch.zeros(before.shape, dtype=dtype, device=device).masked_fill_(before, -torch.inf)
    later = torch.full((tokens, tokens), -torch.inf, dtype=dtype, device=device).triu_(1)
    return mask.add_(later)
