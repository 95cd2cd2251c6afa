"""Activation checkpointing: what the forward does not keep, the backward computes again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from llmtrain.choice import ActivationCheckpointing
from llmtrain.ops import blocked_attention  # registers the operator named below

# What takes long to compute again; all else in a block is a pass over memory. Attention is what
# scaled_dot_product_attention becomes on one device or another, or FlexAttention's operator.
_SDPA = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
)
_KEPT = {
    torch.ops.aten.mm.default,
    *(getattr(torch.ops.aten, name).default for name in _SDPA),
    blocked_attention.OPERATOR,
    torch.ops.higher_order.flex_attention,
}


def checkpointed(
    mode: ActivationCheckpointing, function: Callable[..., Tensor], *args: object
) -> Tensor:
    """`function` of the arguments. What of it is kept for the backward, `mode` says.

    Off: all that autograd saves. Selective: products and attention. Full: the arguments alone.
    """
    if mode == "off" or not torch.is_grad_enabled():
        return function(*args)
    how: dict[str, Any] = {} if mode == "full" else {"context_fn": _selective}
    result: Tensor = checkpoint(
        function, *args, use_reentrant=False, preserve_rng_state=False, **how
    )
    return result


def silence_compiler_warning() -> None:
    """torch.compile no longer warns of in-place operators in checkpointed code; ours has none."""
    logging.getLogger("torch._higher_order_ops.wrap").setLevel(logging.ERROR)


def _policy(_context: Any, operator: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    keep = operator in _KEPT
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE


_selective = partial(create_selective_checkpoint_contexts, _policy)
