"""Orthogonalise matrices by products alone, many of one shape at once.

Shapes: N matrices of R rows and C columns, R ≤ C.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Jordan et al. 2024, "Muon": the steepest slope at 0 that keeps singular values within 0.7–1.2.
_LINEAR, _CUBIC, _QUINTIC = 3.4445, -4.7750, 2.0315
_ITERATIONS = 5
_TINY = 1e-7


def orthogonalize(matrices_nrc: Tensor) -> Tensor:
    """Return about U · Vᵀ for each matrix U · S · Vᵀ, in its type, by Newton–Schulz iterations.

    Singular values above 0.01 of the Frobenius norm become 0.65 to 1.25; a zero matrix stays zero.
    R ≤ C makes the products the smaller ones.
    """
    norms = torch.linalg.vector_norm(matrices_nrc, dim=(1, 2), keepdim=True, dtype=torch.float32)
    x: Tensor = matrices_nrc * (1.0 / (norms + _TINY)).to(matrices_nrc.dtype)
    for _ in range(_ITERATIONS):
        gram = torch.bmm(x, x.mT)
        polynomial = torch.baddbmm(gram, gram, gram, beta=_CUBIC, alpha=_QUINTIC)
        x = torch.baddbmm(x, polynomial, x, beta=_LINEAR)
    return x
