"""Root-mean-square norm (Zhang and Sennrich 2019)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def rms_norm(x: Tensor, gain: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
    """`gain · x / rms(x)` over the last dimension, computed in `gain`'s precision, as `dtype`."""
    return F.rms_norm(x.to(gain.dtype), (x.shape[-1],), gain, epsilon).to(dtype)
