"""Causal attention with grouped queries.

Shapes: B sequences, H query heads, G key heads, T tokens, D features a head.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from llmtrain.choice import AttentionKernel
from llmtrain.ops.blocked_attention import blocked_attention
from llmtrain.ops.documents import DocumentMask
from llmtrain.ops.native.attention import native_attention


def causal_attention(
    q_bhtd: Tensor,
    k_bgtd: Tensor,
    v_bgtd: Tensor,
    kernel: AttentionKernel = "sdpa",
    documents: DocumentMask | None = None,
) -> Tensor:
    """Return softmax(q · kᵀ / √D) · v over each token and those before it, (B, T, H · D).

    With `documents`, from `ops.documents.document_mask`, tokens attend to their own document only;
    the `flex` kernel is for that and for compiled code, because eagerly it computes all scores.
    """
    if kernel in ("blocks", "native"):
        assert not isinstance(documents, BlockMask)
        by_kernel = blocked_attention if kernel == "blocks" else native_attention
        return by_kernel(q_bhtd, k_bgtd, v_bgtd, documents)
    grouped = q_bhtd.shape[1] != k_bgtd.shape[1]
    if isinstance(documents, BlockMask):
        found = flex_attention(q_bhtd, k_bgtd, v_bgtd, block_mask=documents, enable_gqa=grouped)
        assert isinstance(found, Tensor)
        return found.transpose(1, 2).flatten(2)
    if grouped and documents is not None and q_bhtd.device.type != "cpu":
        # GPU kernels with a mask do not support grouped queries: all scores would be stored.
        share = q_bhtd.shape[1] // k_bgtd.shape[1]
        k_bgtd, v_bgtd = (x.repeat_interleave(share, dim=1) for x in (k_bgtd, v_bgtd))
        grouped = False
    is_causal = documents is None  # else the mask is
    y_bhtd = F.scaled_dot_product_attention(
        q_bhtd, k_bgtd, v_bgtd, attn_mask=documents, is_causal=is_causal, enable_gqa=grouped
    )
    return y_bhtd.transpose(1, 2).flatten(2)


def cached_attention(
    q_bhtd: Tensor, k_bgsd: Tensor, v_bgsd: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Return the attention of new tokens over the S tokens so far, (B, T, H · D).

    `mask`, which (B, H, T, S) can be broadcast from, is true where a token attends; without one,
    each attends to all.
    """
    grouped = q_bhtd.shape[1] != k_bgsd.shape[1]
    y_bhtd = F.scaled_dot_product_attention(
        q_bhtd, k_bgsd, v_bgsd, attn_mask=mask, enable_gqa=grouped
    )
    return y_bhtd.transpose(1, 2).flatten(2)
