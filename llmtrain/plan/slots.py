"""Choose how many texts a model continues together."""

from __future__ import annotations

from collections.abc import Callable

from llmtrain.choice import Choice, DeviceKind
from llmtrain.errors import DoesNotFitError
from llmtrain.machine.facts import Facts
from llmtrain.plan.inference_memory import predict_generation
from llmtrain.plan.memory_fit import memory_limit_bytes
from llmtrain.profile.shape import ModelShape
from llmtrain.units import format_bytes

# More share the reading of the weights among more texts, but each waits longer for its next token.
_MOST_SLOTS = 16


def choose_slots(
    facts: Facts,
    shape: ModelShape,
    kind: DeviceKind,
    *,
    half_precision: bool,
    requested: int | None = None,
) -> Choice[int]:
    """Choose the number of slots. Raises DoesNotFitError if those asked for do not fit."""

    def predicted_bytes(slots: int) -> int:
        return predict_generation(
            shape,
            kind,
            half_precision=half_precision,
            slots=slots,
            torch_build=facts.torch_build,
        ).total_bytes

    limit_bytes = memory_limit_bytes(facts, kind)
    if requested is not None:
        needed_bytes = predicted_bytes(requested)
        if needed_bytes > limit_bytes:
            raise DoesNotFitError(
                f"{requested} slots with a context of {shape.context} tokens need "
                f"{format_bytes(needed_bytes)}; the limit is {format_bytes(limit_bytes)}",
                hint=f"--slots {_most_that_fit(predicted_bytes, limit_bytes, requested)}",
            )
        return Choice(requested, "asked for")
    slots = _MOST_SLOTS
    while slots > 1 and predicted_bytes(slots) > limit_bytes:
        slots -= 1
    size = f"{format_bytes(predicted_bytes(slots))} of {format_bytes(limit_bytes)} predicted"
    more = "each text waits longer with more" if slots == _MOST_SLOTS else "more do not fit"
    return Choice(slots, f"{size}; {more}")


def _most_that_fit(predicted_bytes: Callable[[int], int], limit_bytes: int, too_many: int) -> int:
    """Return the largest number of slots below `too_many` whose memory fits; 1 if none does."""
    fits = 1
    while too_many - fits > 1:
        slots = (fits + too_many) // 2
        if predicted_bytes(slots) > limit_bytes:
            too_many = slots
        else:
            fits = slots
    return fits
