"""Registering operators of one's own, which compiled and checkpointed code sees as a whole.

`torch.library.custom_op` does the same, and imports torch's compiler on the first call: tens
of MiB and a second of a process that may never compile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch._ops import OpOverload


def operator(name: str) -> Callable[[Callable[..., Any]], OpOverload]:
    """Return a decorator that makes a function of tensors the operator `llmtrain::name`.

    The function changes none of its arguments and returns new tensors. For the compiler, give it
    `torch.library.register_fake`; for the backward, `torch.library.register_autograd`.
    """

    def register(function: Callable[..., Any]) -> OpOverload:
        qualified = f"llmtrain::{name}"
        schema = torch.library.infer_schema(function, mutates_args=())
        tags = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
        torch.library.define(qualified, schema, tags=tags)
        torch.library.impl(qualified, "default")(function)
        return cast("OpOverload", getattr(torch.ops.llmtrain, name).default)

    return register
