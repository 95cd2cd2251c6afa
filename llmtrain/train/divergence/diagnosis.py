"""Find where a step's numbers first became non-finite, by recomputing it window by window.

Runs only after a bad step, on the training model but eagerly: the same modules, kernels and types.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from llmtrain.model.block import Block
from llmtrain.model.decoder import Backbone, Decoder
from llmtrain.ops.eager import eagerly
from llmtrain.tokenizer import Tokenizer
from llmtrain.train.distributed.sharding import local_part
from llmtrain.train.loop import Run

_SNIPPET_CHARACTERS = 60
_SHORTEST_PASSAGE_CHARACTERS = 8  # shorter ones occur everywhere

Place = Literal["weight", "input", "output", "gradient"]
_PLACES: tuple[Place, ...] = ("weight", "input", "output", "gradient")  # in order


@dataclass(frozen=True, slots=True)
class Finding:
    """The first non-finite value: of which module or parameter, in which window.

    `position` is that of the window in the run's order; None for weights.
    """

    place: Place
    name: str
    position: int | None = None


def diagnose(run: Run, first_window: int) -> Finding | None:
    """Return the first non-finite value of the step whose batch starts at `first_window`.

    None if every window alone is finite: the fault is not reproducible, or only in a batch. Every
    rank has to call it and gets the first rank's finding. Clears the gradients.

    The ranks of a sharded model compute together, so that each goes through all of its windows,
    and a gradient is the sum over theirs: it names no window.
    """
    found = _agreed(run, _in_weights(run))
    if found is not None:
        return found
    return _agreed(run, _on_this_rank(run, first_window))


def _agreed(run: Run, found: Finding | None) -> Finding | None:
    """Return the finding of the first rank that has one, of a sharded model the earliest."""
    names = [*_modules(run.model), *dict(run.model.named_parameters())]
    ours = [0.0, 0.0, 0.0]
    if found is not None:
        position = -1 if found.position is None else found.position
        ours = [1.0 + _PLACES.index(found.place), names.index(found.name), position]
    before, after = run.world.rank, run.world.size - run.world.rank - 1
    numbers = run.all_reduce([0.0] * 3 * before + ours + [0.0] * 3 * after)
    findings = []
    for rank in range(run.world.size):
        place, name, position = (int(number) for number in numbers[3 * rank : 3 * rank + 3])
        if place:
            where = position if position >= 0 else None
            findings.append(Finding(_PLACES[place - 1], names[name], where))
    if run.sharded is not None:  # a gradient that another rank's forward made bad is no cause
        findings.sort(key=lambda finding: _PLACES.index(finding.place))
    return findings[0] if findings else None


def describe(run: Run, tokenizer: Tokenizer, first_window: int, found: Finding | None) -> str:
    """Return the finding in words, with the text of its window."""
    if found is None:
        return f"each window alone is finite; {describe_batch(run, tokenizer, first_window)}"
    what = {
        "weight": f"in the weights, {found.name}",
        "input": f"in the forward, an input of {found.name}",
        "output": f"in the forward, the output of {found.name}",
        "gradient": f"in the backward, the gradient of {found.name}",
    }[found.place]
    if found.position is None:
        return f"first not finite: {what}; {describe_batch(run, tokenizer, first_window)}"
    return f"first not finite: {what}; of {_window(run, tokenizer, found.position)}"


def describe_batch(run: Run, tokenizer: Tokenizer, first_window: int) -> str:
    """Return which text a step read."""
    first = _window(run, tokenizer, first_window)
    return f"the batch has {run.windows_per_step} windows, the first {first}"


def passages(run: Run, tokenizer: Tokenizer, first_window: int, found: Finding | None) -> list[str]:
    """Return the passages between separators in the finding's window, or in the first one."""
    first = first_window
    if found is not None and found.position is not None:
        first = found.position
    ids: list[int] = run.batches.read(first, 1)[0][0].tolist()
    ends = [i for i, token in enumerate(ids) if token == tokenizer.separator_id]
    pieces = [ids[a + 1 : b] for a, b in itertools.pairwise([-1, *ends, len(ids)])]
    # a window may start and end within a character
    texts = (tokenizer.decode(piece).strip("\ufffd") for piece in pieces)
    return [text for text in texts if len(text) >= _SHORTEST_PASSAGE_CHARACTERS]


def _window(run: Run, tokenizer: Tokenizer, position: int) -> str:
    """Return the location of a window in the training text, and its first characters."""
    inputs = run.batches.read(position, 1)[0]
    snippet = tokenizer.decode(inputs[0].tolist())[:_SNIPPET_CHARACTERS]
    return f"{run.batches.place(position)}, {snippet!r}"


def _in_weights(run: Run) -> Finding | None:
    for name, parameter in run.model.named_parameters():
        if not _is_finite(parameter):
            return Finding("weight", name)
    return None


def _on_this_rank(run: Run, first_window: int) -> Finding | None:
    share = run.windows_per_step // run.world.size
    first = first_window + run.world.rank * share
    with eagerly(), _each_module_called(run.model):
        findings: Iterable[Finding | None]
        findings = (_in_window(run, position) for position in range(first, first + share))
        if run.sharded is not None:
            findings = list(findings)
        return next((finding for finding in findings if finding is not None), None)


def _in_window(run: Run, position: int) -> Finding | None:
    """Return the first non-finite value in one window's forward, else in its backward.

    A fault between modules, as in attention, appears in the input of the next one.
    """
    arrays = run.to_device(run.batches.read(position, 1))
    seen: list[Finding] = []

    def check(place: Place, name: str, *values: object) -> None:
        if not all(map(_is_finite, values)):
            seen.append(Finding(place, name, position))

    with ExitStack() as hooks:
        for name, module in _modules(run.model).items():
            for handle in (
                module.register_forward_pre_hook(lambda _, args, n=name: check("input", n, *args)),
                module.register_forward_hook(lambda _m, _a, out, n=name: check("output", n, out)),
            ):
                hooks.callback(handle.remove)
        with run.autocast():
            nats = run.model(*arrays)
    loss = run.scaler.scale(nats / (run.windows_per_step * run.context))
    if run.sharded is not None:
        loss.backward()
        seen += _in_gradients(run.model)
        run.optimizer.zero_grad()
    elif not seen:
        with ExitStack() as hooks:
            for name, parameter in run.model.named_parameters():
                handle = parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                    lambda p, n=name: check("gradient", n, p.grad)
                )
                hooks.callback(handle.remove)
            loss.backward()
        run.optimizer.zero_grad()
    return seen[0] if seen else None


def _in_gradients(model: Decoder) -> Iterator[Finding]:
    """Yield which gradients are not finite, in about the order of the backward."""
    for name, parameter in reversed(list(model.named_parameters())):
        if not _is_finite(parameter.grad):
            yield Finding("gradient", name)


@contextmanager
def _each_module_called(model: Decoder) -> Iterator[None]:
    """Within the block, disable activation checkpointing, and kernels that span modules.

    A recomputing backward would run with other hooks, and eagerly with other weights.
    """
    blocks = list(model.model.blocks())
    modules: list[Backbone | Block] = [model.model, *blocks]
    modes = [module.checkpointing for module in modules]
    kernels = [block.mlp.kernels for block in blocks]
    try:
        for module in modules:
            module.checkpointing = "off"
        for block in blocks:
            block.use_kernels("torch")
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.checkpointing = mode
        for block, kernel in zip(blocks, kernels, strict=True):
            block.use_kernels(kernel)


def _modules(model: Decoder) -> dict[str, nn.Module]:
    """Return the modules by name; the whole model, which computes head and loss, is last."""
    return {name or "head and loss": module for name, module in model.named_modules()}


def _is_finite(value: object) -> bool:
    """Return whether all numbers are finite; True for anything but a floating-point tensor."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return True
    return bool(torch.isfinite(local_part(value.detach())).all())
