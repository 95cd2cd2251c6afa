"""The optimizer: Muon for hidden matrices, AdamW for everything else. Groups have the algorithm."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from llmtrain.choice import Algorithm
from llmtrain.ops.chunk_sizes import MUON_STACK_BYTES
from llmtrain.ops.orthogonal import orthogonalize

# State tensors per parameter.
STATE: dict[Algorithm, tuple[str, ...]] = {
    "muon": ("momentum",),
    "adamw": ("step", "exp_avg", "exp_avg_sq"),
}


class RoleOptimizer(torch.optim.Optimizer):
    """An optimizer whose groups have their own `algorithm`.

    Muon (Jordan et al. 2024): the Nesterov momentum of a matrix is orthogonalised, so that all
    directions move alike; the update is `lr · √max(1, rows / columns)` times that. AdamW
    (Loshchilov and Hutter 2019) is torch's. Both decay weights by `lr · weight_decay`.

    A group has `algorithm`, `lr`, `weight_decay`, and `momentum` for Muon or `betas` and `eps`
    for AdamW. `product_dtype` is the type of the orthogonalisation's products.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], *, fused: bool, product_dtype: torch.dtype
    ) -> None:
        super().__init__(groups, {"fused": fused})
        self.product_dtype = product_dtype

    # torch's own two methods import its compiler on their first call: tens of MiB, and a second.

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; what it does not say is as in `defaults`."""
        group = {**self.defaults, **param_group}
        self.param_groups.append(group | {"params": list(group["params"])})

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Free all gradients, or set them to zero."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if set_to_none or parameter.grad is None:
                    parameter.grad = None
                else:
                    parameter.grad.detach_().zero_()

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if group["algorithm"] == "muon":
                self._muon(group, parameters)
            else:
                self._adamw(group, parameters)

    def _muon(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        for stack in stacks(parameters, self.product_dtype.itemsize):
            self._muon_stack(group, stack)  # frees its memory for the next

    def _muon_stack(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        directions = orthogonalize(torch.stack([self._direction(group, p) for p in parameters]))
        for parameter, direction in zip(parameters, directions, strict=True):
            rows, columns = parameter.shape
            wide = direction if rows <= columns else direction.mT
            parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
            parameter.add_(wide, alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)

    def _direction(self, group: dict[str, Any], parameter: Tensor) -> Tensor:
        """Update the momentum; return Nesterov's direction, transposed to rows ≤ columns."""
        ahead = self._ahead(group, parameter)
        return ahead if ahead.shape[0] <= ahead.shape[1] else ahead.mT

    def _ahead(self, group: dict[str, Any], parameter: Tensor) -> Tensor:
        """Update the momentum; return Nesterov's direction, of what this process has."""
        assert parameter.grad is not None
        gradient, state = self.part(parameter.grad), self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(self.part(parameter))
        momentum: Tensor = state["momentum"].lerp_(gradient, 1.0 - group["momentum"])
        return gradient.lerp(momentum, group["momentum"]).to(self.product_dtype)

    def part(self, tensor: Tensor) -> Tensor:
        """Return what this process has of a parameter or its gradient: here all of it."""
        return tensor

    def _adamw(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        states = [self._adamw_state(p) for p in parameters]
        adamw(
            [self.part(p) for p in parameters],
            [self.part(p.grad) for p in parameters if p.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            foreach=not group["fused"],
            fused=group["fused"],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _adamw_state(self, parameter: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            device = parameter.device if self.defaults["fused"] else "cpu"
            state["step"] = torch.zeros((), dtype=torch.float32, device=device)
            state["exp_avg"] = torch.zeros_like(self.part(parameter))
            state["exp_avg_sq"] = torch.zeros_like(self.part(parameter))
        return state


def stacks(parameters: list[Tensor], element_bytes: int) -> Iterator[list[Tensor]]:
    """Yield stacks of matrices of the same shape or its transpose, up to `MUON_STACK_BYTES`."""
    by_shape: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
    for parameter in parameters:
        by_shape[tuple(sorted(parameter.shape))].append(parameter)
    for shape, same in by_shape.items():
        at_once = max(1, MUON_STACK_BYTES // (element_bytes * shape[0] * shape[1]))
        for start in range(0, len(same), at_once):
            yield same[start : start + at_once]
