"""Block masks for attention within documents, for torch's FlexAttention.

Compiled on a GPU, it skips blocks of 128 × 128 pairs of tokens that share no document; with a mask
of all pairs every block is computed (Dong et al. 2024, "Flex Attention").

Shapes: B sequences, T tokens, N blocks of a sequence.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import pad

BLOCK_TOKENS = 128


def document_blocks(first_bt: Tensor) -> BlockMask:
    """Return the block mask for `first_bt`, the first token that each attends to.

    `first_bt` does not decrease along T. Blocks in which every query attends to every key are
    listed apart from those that need the mask.
    """
    tokens = first_bt.shape[1]
    least_bn = first_bt[:, ::BLOCK_TOKENS]
    # The last token of a block attends to the fewest keys before it. Padding beyond the end attends
    # to nothing, so no block with it is full.
    over = -tokens % BLOCK_TOKENS
    most_bn = pad(first_bt, (0, over), value=tokens)[:, BLOCK_TOKENS - 1 :: BLOCK_TOKENS]
    starts_n = torch.arange(least_bn.shape[1], device=first_bt.device) * BLOCK_TOKENS
    is_before = starts_n < starts_n[:, None]
    touched = least_bn[:, :, None] < starts_n + BLOCK_TOKENS
    full = is_before & (most_bn[:, :, None] <= starts_n)
    partial = touched & (starts_n <= starts_n[:, None]) & ~full

    def attends(sequence: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key >= first_bt[sequence, query])

    return BlockMask.from_kv_blocks(
        *_counted(partial),
        *_counted(full),
        BLOCK_SIZE=BLOCK_TOKENS,
        mask_mod=attends,
        seq_lengths=(tokens, tokens),
    )


def _counted(blocks_bnn: Tensor) -> tuple[Tensor, Tensor]:
    """Return the number of key blocks of each query block, and their indices first."""
    counts = blocks_bnn.sum(dim=-1, dtype=torch.int32)[:, None]
    order = torch.argsort(blocks_bnn.to(torch.int8), dim=-1, descending=True, stable=True)
    return counts.contiguous(), order[:, None].to(torch.int32).contiguous()
