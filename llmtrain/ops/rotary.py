"""Rotary position embedding (Su et al. 2021), in the half-split layout of Llama and Qwen."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_table(head_dim: int, positions: int, theta: float) -> tuple[Tensor, Tensor]:
    """Return cosines and sines, fp32, of shape (positions, head_dim / 2)."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim
    frequencies = 1.0 / theta**exponents
    angles = torch.outer(torch.arange(positions, dtype=torch.float32, device="cpu"), frequencies)
    return angles.cos(), angles.sin()


def rotate(x_bhtd: Tensor, cos_td: Tensor, sin_td: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `x` as `dtype`, each pair (i, i + D/2) rotated by the angle of its position."""
    first, second = x_bhtd.to(cos_td.dtype).chunk(2, dim=-1)
    rotated = (first * cos_td - second * sin_td, second * cos_td + first * sin_td)
    return torch.cat(rotated, dim=-1).to(dtype)
