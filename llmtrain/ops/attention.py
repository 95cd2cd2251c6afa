"""Causal attention with grouped queries.

Shapes: B sequences, H query heads, G key heads, T tokens, D features a head.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from llmtrain.device.choice import AttentionKernel
from llmtrain.ops.blocked_attention import blocked_attention


def causal_attention(
    q_bhtd: Tensor, k_bgtd: Tensor, v_bgtd: Tensor, kernel: AttentionKernel = "sdpa"
) -> Tensor:
    """What each token gathers from itself and those before it, heads side by side: (B, T, H · D).

    Fewer queries than keys means that the queries are the newest tokens: then there is exactly
    one, which sees all keys.
    """
    is_prefix = q_bhtd.shape[2] == k_bgtd.shape[2]
    assert is_prefix or q_bhtd.shape[2] == 1, "one new token at a time"
    if kernel == "blocks" and is_prefix:
        return blocked_attention(q_bhtd, k_bgtd, v_bgtd)
    grouped = q_bhtd.shape[1] != k_bgtd.shape[1]
    y_bhtd = F.scaled_dot_product_attention(
        q_bhtd, k_bgtd, v_bgtd, is_causal=is_prefix, enable_gqa=grouped
    )
    return y_bhtd.transpose(1, 2).flatten(2)
