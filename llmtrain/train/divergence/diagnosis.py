"""Where a step's numbers stopped being finite: computed again, window by window, and watched.

Runs only when something is wrong, on the model as training uses it but eager: the same modules,
kernels and types.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from llmtrain.model.decoder import Backbone, Block, Decoder
from llmtrain.tokenizer import Tokenizer
from llmtrain.train.loop import Run

_SNIPPET_CHARACTERS = 60
_SHORTEST_PASSAGE_CHARACTERS = 8  # a shorter one is everywhere

Place = Literal["weight", "input", "output", "gradient"]
_PLACES: tuple[Place, ...] = ("weight", "input", "output", "gradient")  # in the order of computing


@dataclass(frozen=True, slots=True)
class Finding:
    """The first value that is not finite: of which module or parameter, in which window.

    `position` is the window's in the run's order; None where no window is needed to see it.
    """

    place: Place
    name: str
    position: int | None = None


def diagnose(run: Run, first_window: int) -> Finding | None:
    """What is first not finite in the step that began to read at `first_window`, on any rank.

    None where every window, computed alone, is finite: then it does not happen again, or happens
    only in a batch. Every rank has to ask. There are no gradients afterwards.
    """
    names = [*_modules(run.model), *dict(run.model.named_parameters())]
    found = _of_this_rank(run, first_window)
    ours = [0.0, 0.0, 0.0]
    if found is not None:
        position = -1 if found.position is None else found.position
        ours = [1.0 + _PLACES.index(found.place), names.index(found.name), position]
    before, after = run.world.rank, run.world.size - run.world.rank - 1
    numbers = run.world.sum_values([0.0] * 3 * before + ours + [0.0] * 3 * after, run.device)
    for rank in range(run.world.size):
        place, name, position = (int(number) for number in numbers[3 * rank : 3 * rank + 3])
        if place:
            return Finding(_PLACES[place - 1], names[name], position if position >= 0 else None)
    return None


def describe(run: Run, tokenizer: Tokenizer, first_window: int, found: Finding | None) -> str:
    """The finding in words, with the text that was read."""
    if found is None:
        return f"each window alone is finite; {describe_batch(run, tokenizer, first_window)}"
    what = {
        "weight": f"in the weights, {found.name}",
        "input": f"in the forward, what enters {found.name}",
        "output": f"in the forward, what {found.name} returns",
        "gradient": f"in the backward, the gradient of {found.name}",
    }[found.place]
    if found.position is None:
        return f"first not finite: {what}; {describe_batch(run, tokenizer, first_window)}"
    return f"first not finite: {what}; of {_window(run, tokenizer, found.position)}"


def describe_batch(run: Run, tokenizer: Tokenizer, first_window: int) -> str:
    """Which text a step read."""
    first = _window(run, tokenizer, first_window)
    return f"the batch has {run.windows_per_step} windows, the first {first}"


def passages(run: Run, tokenizer: Tokenizer, first_window: int, found: Finding | None) -> list[str]:
    """Whole passages of what was read: of the window that was found, or of the batch's first."""
    first = first_window
    if found is not None and found.position is not None:
        first = found.position
    ids: list[int] = run.batches.read(first, 1)[0][0].tolist()
    ends = [i for i, token in enumerate(ids) if token == tokenizer.separator_id]
    pieces = [ids[a + 1 : b] for a, b in itertools.pairwise([-1, *ends, len(ids)])]
    # a window may begin and end within a character
    texts = (tokenizer.decode(piece).strip("\ufffd") for piece in pieces)
    return [text for text in texts if len(text) >= _SHORTEST_PASSAGE_CHARACTERS]


def _window(run: Run, tokenizer: Tokenizer, position: int) -> str:
    """Which text a window is: where it lies in what is trained on, and how it begins."""
    inputs, _ = run.batches.read(position, 1)
    snippet = tokenizer.decode(inputs[0].tolist())[:_SNIPPET_CHARACTERS]
    return f"{run.batches.place(position)}, {snippet!r}"


def _of_this_rank(run: Run, first_window: int) -> Finding | None:
    for name, parameter in run.model.named_parameters():
        if not _is_finite(parameter):
            return Finding("weight", name)
    share = run.windows_per_step // run.world.size
    first = first_window + run.world.rank * share
    with torch.compiler.set_stance("force_eager"), _all_kept(run.model):
        found = (_in_window(run, position) for position in range(first, first + share))
        return next((finding for finding in found if finding is not None), None)


def _in_window(run: Run, position: int) -> Finding | None:
    """What is first not finite of one window: in its forward, else in its backward."""
    inputs, targets = (torch.as_tensor(a).to(run.device) for a in run.batches.read(position, 1))
    seen: list[Finding] = []
    with _watched_forward(run.model, seen, position), run.autocast():
        nats = run.model(inputs, targets)
    if not seen:
        with _watched_backward(run.model, seen, position):
            run.scaler.scale(nats / (run.windows_per_step * run.context)).backward()
        run.optimizer.zero_grad()
    return seen[0] if seen else None


@contextmanager
def _all_kept(model: Decoder) -> Iterator[None]:
    """While the block runs, no backward computes again what a forward has computed.

    It would see hooks, and eagerly weights, that are not those of the forward.
    """
    choosing: list[Backbone | Block] = [model.model, *model.model.blocks()]
    chosen = [module.checkpointing for module in choosing]
    try:
        for module in choosing:
            module.checkpointing = "off"
        yield
    finally:
        for module, choice in zip(choosing, chosen, strict=True):
            module.checkpointing = choice


def _modules(model: Decoder) -> dict[str, nn.Module]:
    """The modules by name; the whole, which the head and the loss are computed in, last."""
    return {name or "head and loss": module for name, module in model.named_modules()}


@contextmanager
def _watched_forward(model: Decoder, seen: list[Finding], position: int) -> Iterator[None]:
    """While the block runs, modules whose inputs or outputs are not finite are `seen`.

    What is computed between modules, as attention is, shows in what enters the next one.
    """

    def entering(name: str) -> Any:
        def look(_module: nn.Module, args: tuple[object, ...]) -> None:
            if not all(map(_is_finite, args)):
                seen.append(Finding("input", name, position))

        return look

    def leaving(name: str) -> Any:
        def look(_module: nn.Module, _args: tuple[object, ...], output: object) -> None:
            if not _is_finite(output):
                seen.append(Finding("output", name, position))

        return look

    handles = [
        handle
        for name, module in _modules(model).items()
        for handle in (
            module.register_forward_pre_hook(entering(name)),
            module.register_forward_hook(leaving(name)),
        )
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _watched_backward(model: Decoder, seen: list[Finding], position: int) -> Iterator[None]:
    """While the block runs, parameters whose gradients are not finite are `seen`."""

    def arriving(name: str) -> Any:
        def look(parameter: Tensor) -> None:
            if not _is_finite(parameter.grad):
                seen.append(Finding("gradient", name, position))

        return look

    handles = [
        parameter.register_post_accumulate_grad_hook(arriving(name))  # type: ignore[no-untyped-call]
        for name, parameter in model.named_parameters()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _is_finite(value: object) -> bool:
    """Whether all numbers are; what is no tensor of them is."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return True
    return bool(torch.isfinite(value.detach()).all())
