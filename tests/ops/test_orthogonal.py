"""Matrices come out nearly orthogonal, whatever they were, and each as if it were alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llmtrain.ops.orthogonal import orthogonalize


def drawn(*size: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e12])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (40, 40), (32, 96)])
def test_singular_values_are_near_one(
    shape: tuple[int, int], scale: float, dtype: torch.dtype
) -> None:
    matrices = drawn(3, *shape, scale=scale)
    norms = torch.linalg.matrix_norm(matrices)[:, None]
    likely = torch.linalg.svdvals(matrices) > 0.02 * norms
    found = torch.linalg.svdvals(orthogonalize(matrices.to(dtype)).float())
    assert likely.any()
    assert found[likely].min() > 0.6
    assert found.max() < 1.3


def test_directions_are_kept() -> None:
    """U · Vᵀ has the inner product of all singular values with its matrix, the most there is."""
    matrices = drawn(4, 24, 64)
    nuclear = torch.linalg.svdvals(matrices).sum(-1)
    found = (orthogonalize(matrices) * matrices).sum((1, 2))
    assert ((found / nuclear) > 0.65).all()
    assert ((found / nuclear) < 1.25).all()


def test_a_matrix_does_not_depend_on_its_neighbours() -> None:
    matrices = drawn(5, 16, 48)
    together = orthogonalize(matrices)
    for i in range(5):
        torch.testing.assert_close(together[i], orthogonalize(matrices[i : i + 1])[0])


def test_zeros_stay_zeros() -> None:
    assert torch.equal(orthogonalize(torch.zeros(2, 4, 8)), torch.zeros(2, 4, 8))
