"""Activation checkpointing without torch's compiler, for blocks that run eagerly on a CPU.

`torch.utils.checkpoint` imports it: tens of MiB of a process whose memory is short.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import TorchDispatchMode

from llmtrain.choice import ActivationCheckpointing
from llmtrain.ops.checkpointing import SAVED, checkpointed

_Function = Callable[..., Tensor]


def checkpointed_block(
    mode: ActivationCheckpointing, block: nn.Module, call: _Function, x: Tensor, *rest: object
) -> Tensor:
    """Return `call(x, *rest)`, which calls the block; `mode` as in `checkpointed`.

    On a CPU the backward computes again what was not kept without torch's own checkpointing.
    """
    if mode == "off" or not torch.is_grad_enabled() or x.device.type != "cpu":
        return checkpointed(mode, call, x, *rest)
    trained = [parameter for parameter in block.parameters() if parameter.requires_grad]
    return recomputed(call, trained, x, *rest, keeps_products=mode == "selective")


def recomputed(
    function: _Function,
    parameters: Sequence[Tensor],
    x: Tensor,
    *rest: object,
    keeps_products: bool = True,
) -> Tensor:
    """Return `function(x, *rest)`; the backward computes again, bit for bit, what was not kept.

    `parameters`: all that is trained of what the function computes with. What is kept: `x`, and
    with `keeps_products` the results of products and attention.
    """
    y: Tensor = _Recomputed.apply(function, rest, keeps_products, x, *parameters)  # type: ignore[no-untyped-call]
    return y


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        function: _Function,
        rest: tuple[object, ...],
        keeps_products: bool,
        x: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        ctx.function, ctx.rest = function, rest
        ctx.operators, ctx.kept = (SAVED if keeps_products else set()), deque()
        with _keeping(ctx.operators, ctx.kept, replays=False):
            y = function(x, *rest)
        ctx.autocast = _autocast_as_now(x.device.type)
        ctx.save_for_backward(x, *parameters)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:
        x, *parameters = ctx.saved_tensors
        needed = ctx.needs_input_grad[3:]
        inputs = [x.detach().requires_grad_(needed[0]), *parameters]
        keeping = _keeping(ctx.operators, ctx.kept, replays=True)
        with torch.enable_grad(), ctx.autocast(), keeping:
            y = ctx.function(inputs[0], *ctx.rest)
        ctx.kept = None
        wanted = [each for each, is_needed in zip(inputs, needed, strict=True) if is_needed]
        found = iter(torch.autograd.grad(y, wanted, d_y))
        return None, None, None, *(next(found) if is_needed else None for is_needed in needed)


def _autocast_as_now(device_type: str) -> Callable[[], AbstractContextManager[object]]:
    """Return a function that gives the context in which this is called."""
    enabled = torch.is_autocast_enabled(device_type)
    dtype = torch.get_autocast_dtype(device_type)
    return lambda: torch.autocast(device_type, dtype=dtype, enabled=enabled)


def _keeping(
    operators: Collection[object], kept: deque[Any], *, replays: bool
) -> AbstractContextManager[object]:
    """Return a context that keeps results, or nothing where none is kept: it costs each call."""
    return _Kept(operators, kept, replays=replays) if operators else nullcontext()


class _Kept(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps the results of some operators in their order, or gives them back in that order."""

    def __init__(self, operators: Collection[object], kept: deque[Any], *, replays: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._operators, self._kept, self._replays = operators, kept, replays

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False: to skip it, torch imports its compiler at the first call."""
        return False

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        is_kept = func in self._operators
        if is_kept and self._replays:
            return self._kept.popleft()
        result = func(*args, **(kwargs or {}))
        if is_kept:
            self._kept.append(result)
        return result
