"""What was tried and is not a setting: each replaces a function of llmtrain while it lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from llmtrain.model import optimizer as optimizer_module
from llmtrain.ops import orthogonal

# Amsel et al. 2025, "The Polar Express": the optimal polynomial of each iteration.
_POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)


def _polar(iterations: int) -> Callable[[Tensor], Tensor]:
    def orthogonalize(matrices_nrc: Tensor) -> Tensor:
        norms = torch.linalg.vector_norm(
            matrices_nrc, dim=(1, 2), keepdim=True, dtype=torch.float32
        )
        x: Tensor = matrices_nrc * (1.0 / (norms * 1.01 + 1e-7)).to(matrices_nrc.dtype)
        for linear, cubic, quintic in _POLAR_EXPRESS[:iterations]:
            gram = torch.bmm(x, x.mT)
            polynomial = torch.baddbmm(gram, gram, gram, beta=cubic, alpha=quintic)
            x = torch.baddbmm(x, polynomial, x, beta=linear)
        return x

    return orthogonalize


def _orthogonalizing(function: Callable[[Tensor], Tensor]) -> AbstractContextManager[Any]:
    return patch.object(optimizer_module, "orthogonalize", function)


def _iterations(number: int) -> AbstractContextManager[Any]:
    return patch.object(orthogonal, "_ITERATIONS", number)


@contextmanager
def _neuron_wise(beta: float = 0.95) -> Iterator[None]:
    """Li et al. 2025, "NorMuon": rows of the direction are scaled by their running mean square."""
    moments: dict[tuple[int, ...], Tensor] = {}
    plain = orthogonal.orthogonalize

    def normalised(matrices_nrc: Tensor) -> Tensor:
        directions = plain(matrices_nrc)
        squares = directions.float().square().mean(dim=2, keepdim=True)
        key = tuple(matrices_nrc.shape)
        moment = moments.setdefault(key, torch.zeros_like(squares)).lerp_(squares, 1 - beta)
        scaled = directions / (moment.sqrt() + 1e-7).to(directions.dtype)
        norm = torch.linalg.vector_norm(directions.float(), dim=(1, 2), keepdim=True)
        scaled_norm = torch.linalg.vector_norm(scaled.float(), dim=(1, 2), keepdim=True)
        back: Tensor = scaled * (norm / (scaled_norm + 1e-7)).to(scaled.dtype)
        return back

    with patch.object(optimizer_module, "orthogonalize", normalised):
        yield


@contextmanager
def _momentum_warmup(steps: int = 300, low: float = 0.85, high: float = 0.95) -> Iterator[None]:
    """Momentum rises over the first steps (modded-nanogpt)."""
    counts: dict[int, int] = {}
    plain = optimizer_module.RoleOptimizer.step

    def warmed(optimizer: optimizer_module.RoleOptimizer, closure: None = None) -> None:
        count = counts[id(optimizer)] = counts.get(id(optimizer), -1) + 1
        for group in optimizer.param_groups:
            group["momentum"] = low + (high - low) * min(1.0, count / steps)
        plain(optimizer, closure)

    with patch.object(optimizer_module.RoleOptimizer, "step", warmed):
        yield


VARIANTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "polar-5": lambda: _orthogonalizing(_polar(5)),
    "polar-4": lambda: _orthogonalizing(_polar(4)),
    "polar-3": lambda: _orthogonalizing(_polar(3)),
    "iterations-4": lambda: _iterations(4),
    "iterations-3": lambda: _iterations(3),
    "neuron-wise": _neuron_wise,
    "momentum-warmup": _momentum_warmup,
}
