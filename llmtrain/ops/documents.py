"""Where documents begin, and what keeps the attention of their tokens within them.

A document is a separator and its tokens, so the last token of one is the one whose target is a
separator. That target is kept: from it a model learns where a text ends. The tokens after it see
nothing before themselves, which makes a window of several documents what the documents are alone:
rotary positions enter attention by their differences only and need not begin anew.

Shapes: B sequences, T tokens.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from llmtrain.choice import AttentionKernel
from llmtrain.ops.document_blocks import document_blocks

# What an attention kernel is told of documents.
Seen: TypeAlias = "Tensor | BlockMask"


def first_of_document(targets_bt: Tensor, separator_id: int) -> Tensor:
    """For each token the first one in its window that is of the same document, int32 (B, T)."""
    sequences, tokens = targets_bt.shape
    positions = torch.arange(1, tokens, dtype=torch.int32, device=targets_bt.device)
    first_bt = positions.new_zeros((sequences, tokens))
    begins = targets_bt[:, :-1] == separator_id
    first_bt[:, 1:] = torch.where(begins, positions, 0)
    return first_bt.cummax(dim=1).values


def seen_by(kernel: AttentionKernel, first_bt: Tensor, dtype: torch.dtype) -> Seen:
    """What `causal_attention` by `kernel`, on queries of `dtype`, wants to know of documents.

    Blocks of rows take `first_bt` as it is, and FlexAttention the blocks of pairs that it needs.
    torch's other kernels take a mask of all pairs of tokens, (B, 1, T, T): made once for all
    layers, of the queries' type, as they would convert another. So do evaluations, which are eager:
    FlexAttention that is not compiled makes all scores.
    """
    if kernel == "blocks":
        return first_bt
    if kernel == "flex" and torch.is_grad_enabled():
        return document_blocks(first_bt)
    tokens, device = first_bt.shape[1], first_bt.device
    keys = torch.arange(tokens, dtype=torch.int32, device=device)
    before = keys < first_bt[:, None, :, None]
    mask = torch.zeros(before.shape, dtype=dtype, device=device).masked_fill_(before, -torch.inf)
    later = torch.full((tokens, tokens), -torch.inf, dtype=dtype, device=device).triu_(1)
    return mask.add_(later)
