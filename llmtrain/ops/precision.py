"""The type in which matrices are multiplied: autocast, and cached half-precision weights."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from llmtrain.choice import Precision


def half_dtype(precision: Precision) -> torch.dtype | None:
    """Return the 16-bit type of a precision; None for fp32."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)


def autocast_as(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which matrices are multiplied in `precision`."""
    dtype = half_dtype(precision)
    return torch.autocast(device.type, dtype=dtype) if dtype is not None else nullcontext()


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the type in which matrices are multiplied: autocast's if on, else that of `x`."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class WeightCasts:
    """Half-precision copies of matrices, rounded once a step instead of once a micro-batch.

    Call `forget` after every change of weights: torch's fused optimizers do not change a tensor's
    version. Must not outlive the modules whose weights it copies.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._copies: dict[int, Tensor] = {}
        self._current: set[int] = set()
        self._stacks: dict[tuple[int, ...], Tensor] = {}

    def forget(self) -> None:
        """Invalidate all copies."""
        self._current.clear()

    def of(self, weight: Tensor) -> Tensor:
        """Return `weight` as `dtype`; its gradient reaches `weight` in the weight's type."""
        return cast("Tensor", _Cast.apply(weight, self.plain(weight)))  # type: ignore[no-untyped-call]

    def plain(self, weight: Tensor) -> Tensor:
        """Return `weight` as `dtype`, without autograd."""
        if weight.dtype == self.dtype:
            return weight.detach()
        key = id(weight)
        if key not in self._current:
            if key not in self._copies:
                self._copies[key] = torch.empty_like(weight, dtype=self.dtype)
            self._copies[key] = self._copies[key].detach().copy_(weight.detach())
            self._current.add(key)
        return self._copies[key]

    def to_rewrite(self, weight: Tensor) -> Tensor | None:
        """Return the copy of `weight`, which the caller sets to what the weight has become.

        None where none is kept, because nothing has asked for one.
        """
        copy = self._copies.get(id(weight))
        if copy is not None:
            self._current.add(id(weight))
        return copy

    def stacked(self, weights: Sequence[Tensor]) -> Tensor:
        """Return matrices of as many columns one below the other, as `dtype`, without autograd."""
        key = tuple(map(id, weights))
        if key not in self._stacks:
            rows = sum(map(len, weights))
            stack = weights[0].new_empty(rows, weights[0].shape[1], dtype=self.dtype)
            copies = torch.split(stack, list(map(len, weights)))
            self._copies.update(zip(key, copies, strict=True))
            self._current.difference_update(key)
            self._stacks[key] = stack
        for weight in weights:
            self.plain(weight)
        return self._stacks[key]

    def call(self, module: nn.Module, *args: Any) -> Any:
        """Return `module(*args)` with every matrix in it as `dtype`."""
        matrices = ((name, p) for name, p in module.named_parameters() if p.dim() == 2)
        casts = {name: self.of(p) for name, p in matrices if p.dtype != self.dtype}
        return functional_call(module, casts, args)


class _Cast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, copy: Tensor) -> Tensor:
        ctx.dtype = weight.dtype
        return copy.view_as(copy)

    @staticmethod
    def backward(ctx: Any, d_copy: Tensor) -> tuple[Tensor, None]:
        return d_copy.to(ctx.dtype), None
