"""Activation checkpointing: the backward recomputes what the forward did not save."""

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
from llmtrain.ops.native import attention as native_attention  # and this one

# Operators that are slow to recompute; all else in a block is a pass over memory. Attention is what
# scaled_dot_product_attention dispatches to on some device, or FlexAttention's operator.
_SDPA = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
)
SAVED = {
    torch.ops.aten.mm.default,
    *(getattr(torch.ops.aten, name).default for name in _SDPA),
    blocked_attention.OPERATOR,
    native_attention.OPERATOR,
    torch.ops.higher_order.flex_attention,
}


def checkpointed(
    mode: ActivationCheckpointing, function: Callable[..., Tensor], *args: object
) -> Tensor:
    """Return `function(*args)`; `mode` selects what is saved for the backward.

    Off: all that autograd saves. Selective: products and attention. Full: only the arguments.
    """
    if mode == "off" or not torch.is_grad_enabled():
        return function(*args)
    options: dict[str, Any] = {}
    if mode == "selective":
        options = {"context_fn": _selective}
    elif torch.compiler.is_compiling():
        # Unless told, torch 2.11's compiler saves what an autograd.Function's operators return.
        options = {"context_fn": _nothing}
    result: Tensor = checkpoint(
        function, *args, use_reentrant=False, preserve_rng_state=False, **options
    )
    return result


def silence_compiler_warning() -> None:
    """Silence torch.compile's warning of in-place operators in checkpointed code; we have none."""
    logging.getLogger("torch._higher_order_ops.wrap").setLevel(logging.ERROR)


def _policy(_context: Any, operator: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    is_saved = operator in SAVED
    return CheckpointPolicy.MUST_SAVE if is_saved else CheckpointPolicy.PREFER_RECOMPUTE


def _recompute(_context: Any, _operator: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.PREFER_RECOMPUTE


_selective = partial(create_selective_checkpoint_contexts, _policy)
_nothing = partial(create_selective_checkpoint_contexts, _recompute)
