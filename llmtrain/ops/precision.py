"""In which type matrices are multiplied."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from llmtrain.device.choice import Precision


def autocast_as(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Within it matrices are multiplied in `precision`."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast(device.type, dtype=dtype) if dtype is not None else nullcontext()


def compute_dtype(x: Tensor) -> torch.dtype:
    """The type in which matrices are multiplied here: autocast's where it is on, else `x`'s."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
