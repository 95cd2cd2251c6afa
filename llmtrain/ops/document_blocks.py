"""Which blocks of pairs of tokens attention within documents needs, for torch's FlexAttention.

Compiled on a GPU, it computes no block of 128 × 128 pairs that no document has, where a mask of
all pairs has it compute every one (Dong et al. 2024, "Flex Attention").

Shapes: B sequences, T tokens, N blocks of a sequence.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import pad

BLOCK_TOKENS = 128


def document_blocks(first_bt: Tensor) -> BlockMask:
    """`first_bt`: for each token the first that it sees; nowhere less than for the one before.

    Blocks in which every token sees every key are told apart from those that need the mask.
    """
    tokens = first_bt.shape[1]
    least_bn = first_bt[:, ::BLOCK_TOKENS]
    # The last token of a block sees least of what is before it. What is beyond the end sees nothing
    # at all, so that no block with it is whole.
    over = -tokens % BLOCK_TOKENS
    most_bn = pad(first_bt, (0, over), value=tokens)[:, BLOCK_TOKENS - 1 :: BLOCK_TOKENS]
    begins_n = torch.arange(least_bn.shape[1], device=first_bt.device) * BLOCK_TOKENS
    is_before = begins_n < begins_n[:, None]
    touched = least_bn[:, :, None] < begins_n + BLOCK_TOKENS
    whole = is_before & (most_bn[:, :, None] <= begins_n)
    cut = touched & (begins_n <= begins_n[:, None]) & ~whole

    def sees(sequence: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key >= first_bt[sequence, query])

    return BlockMask.from_kv_blocks(
        *_counted(cut),
        *_counted(whole),
        BLOCK_SIZE=BLOCK_TOKENS,
        mask_mod=sees,
        seq_lengths=(tokens, tokens),
    )


def _counted(wanted_bnn: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries has, and which they are, those first."""
    counts = wanted_bnn.sum(dim=-1, dtype=torch.int32)[:, None]
    order = torch.argsort(wanted_bnn.to(torch.int8), dim=-1, descending=True, stable=True)
    return counts.contiguous(), order[:, None].to(torch.int32).contiguous()
