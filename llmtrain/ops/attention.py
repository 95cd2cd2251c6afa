"""Causal attention with grouped queries.

Shapes: B sequences, H query heads, G key heads, T tokens, D features a head.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def causal_attention(q_bhtd: Tensor, k_bgtd: Tensor, v_bgtd: Tensor) -> Tensor:
    """Every token attends to itself and to those before it; shape of `q_bhtd`.

    Fewer queries than keys means that the queries are the newest tokens: then there is exactly
    one, which sees all keys.
    """
    grouped = q_bhtd.shape[1] != k_bgtd.shape[1]
    is_prefix = q_bhtd.shape[2] == k_bgtd.shape[2]
    assert is_prefix or q_bhtd.shape[2] == 1, "one new token at a time"
    return F.scaled_dot_product_attention(
        q_bhtd, k_bgtd, v_bgtd, is_causal=is_prefix, enable_gqa=grouped
    )
