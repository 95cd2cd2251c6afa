"""Root-mean-square norm (Zhang and Sennrich 2019)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def rms_norm(x: Tensor, gain: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
    """Return `gain · x / rms(x)` over the last dimension as `dtype`, computed in `gain`'s type."""
    return F.rms_norm(x.to(gain.dtype), (x.shape[-1],), gain, epsilon).to(dtype)
