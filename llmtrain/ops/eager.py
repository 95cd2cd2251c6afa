"""Calling compiled modules uncompiled for a while."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext

import torch


def eagerly() -> AbstractContextManager[object]:
    """Return a context in which compiled modules run uncompiled.

    Where torch's compiler was never imported, nothing is compiled; importing it takes tens of MiB.
    """
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance
