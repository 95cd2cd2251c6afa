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
from llmtrain.ops.native.update import AdamwTensors, descend, global_norm, native_adamw, nesterov
from llmtrain.ops.orthogonal import orthogonalize
from llmtrain.ops.precision import WeightCasts

_TINY = 1e-6  # as in nn.utils.clip_grad_norm_

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
    for AdamW. `product_dtype` is the type of the orthogonalisation's products. `native`: update by
    native kernels, which have been loaded, parameters in fp32 on a CPU; products are in bf16.

    `casts`, where there are any, are of these parameters: a step forgets them, or rewrites them.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        product_dtype: torch.dtype,
        native: bool = False,
    ) -> None:
        super().__init__(groups, {})
        self.product_dtype = product_dtype
        self.native = native
        self.casts: WeightCasts | None = None
        self._gradient_factor = 1.0  # of the next step

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

    def clip_gradients(self, limit: float | None) -> float:
        """Return the gradients' global norm, to whose `limit` the next step scales them down.

        For native kernels, which do so while they read them: gradients stay as they are.
        """
        assert self.native
        parameters = (p for group in self.param_groups for p in group["params"])
        norm = global_norm([p.grad for p in parameters if p.grad is not None])
        self._gradient_factor = 1.0 if limit is None else min(1.0, limit / (norm + _TINY))
        return norm

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        if self.casts is not None:
            self.casts.forget()
        updated = [
            (group, [p for p in group["params"] if p.grad is not None])
            for group in self.param_groups
        ]
        # All at once: between the working memory of the first update they would part its holes.
        for group, parameters in updated:
            for parameter in parameters:
                self._state_of(group, parameter)
        for group, parameters in updated:
            if group["algorithm"] == "muon":
                self._muon(group, parameters)
            elif self.native:
                self._native_adamw(group, parameters)
            else:
                self._adamw(group, parameters)
        self._gradient_factor = 1.0

    def _muon(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        for stack in stacks(parameters, self.product_dtype.itemsize):
            self._muon_stack(group, stack)  # frees its memory for the next

    def _muon_stack(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        directions = orthogonalize(torch.stack([self._direction(group, p) for p in parameters]))
        for parameter, direction in zip(parameters, directions, strict=True):
            rows, columns = parameter.shape
            wide = direction if rows <= columns else direction.mT
            decay = group["lr"] * group["weight_decay"]
            rate = group["lr"] * max(1.0, rows / columns) ** 0.5
            if self.native:
                descend(parameter, wide, decay=decay, rate=rate, copy=self._copy(parameter))
            else:
                parameter.mul_(1.0 - decay)
                parameter.add_(wide, alpha=-rate)

    def _direction(self, group: dict[str, Any], parameter: Tensor) -> Tensor:
        """Update the momentum; return Nesterov's direction, transposed to rows ≤ columns."""
        ahead = self._ahead(group, parameter)
        return ahead if ahead.shape[0] <= ahead.shape[1] else ahead.mT

    def _ahead(self, group: dict[str, Any], parameter: Tensor) -> Tensor:
        """Update the momentum; return Nesterov's direction, of what this process has."""
        assert parameter.grad is not None
        gradient, state = self.part(parameter.grad), self._state_of(group, parameter)
        if self.native:
            factor = self._gradient_factor
            return nesterov(gradient, state["momentum"], group["momentum"], factor)
        momentum: Tensor = state["momentum"].lerp_(gradient, 1.0 - group["momentum"])
        return gradient.lerp(momentum, group["momentum"]).to(self.product_dtype)

    def part(self, tensor: Tensor) -> Tensor:
        """Return what this process has of a parameter or its gradient: here all of it."""
        return tensor

    def _adamw(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        states = [self._state_of(group, p) for p in parameters]
        adamw(
            [self.part(p) for p in parameters],
            [self.part(p.grad) for p in parameters if p.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            foreach=False,
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _native_adamw(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        tensors = [
            AdamwTensors(p, p.grad, **self._state_of(group, p), copy=self._copy(p))
            for p in parameters
            if p.grad is not None
        ]
        native_adamw(
            tensors,
            gradient_factor=self._gradient_factor,
            lr=group["lr"],
            betas=group["betas"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
        )

    def _copy(self, parameter: Tensor) -> Tensor | None:
        return None if self.casts is None else self.casts.to_rewrite(parameter)

    def _state_of(self, group: dict[str, Any], parameter: Tensor) -> dict[str, Tensor]:
        """Return a parameter's state, zeros before its first update."""
        state: dict[str, Tensor] = self.state[parameter]
        if state:
            return state
        for name in STATE[group["algorithm"]]:
            if name == "step":
                state[name] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            else:
                state[name] = torch.zeros_like(self.part(parameter))
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
