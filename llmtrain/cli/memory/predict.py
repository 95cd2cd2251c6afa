"""`llmtrain memory --profile`: the memory that training a profile takes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from llmtrain.cli.memory.now import read_memory
from llmtrain.cli.output import Output
from llmtrain.cli.thresholds import FAIL_OVER, bytes_at_most, require_met
from llmtrain.units import format_bytes

if TYPE_CHECKING:
    from llmtrain.cli.output import Part
    from llmtrain.engine.explain import Explained
    from llmtrain.engine.request import TrainRequest


def show_memory_of_profile(
    output: Output, request: TrainRequest, limit_bytes: int | None, *, calibrates: bool
) -> None:
    """Print the memory that training a profile takes, predicted and, if known, measured."""
    from llmtrain.documents.base import present
    from llmtrain.documents.memory import MemoryProfile
    from llmtrain.engine.explain import explain

    explained = explain(request)
    if calibrates:
        explained = _measured(output, request, explained)
    plan, peak_bytes = explained.planned.plan, explained.planned.prediction.total_bytes
    name = f"the predicted peak of {explained.profile.value} on {plan.device.value}"
    thresholds = bytes_at_most(FAIL_OVER, limit_bytes, peak_bytes, is_named=name)
    # An assumed machine has no memory in use.
    now = read_memory() if request.assumed is None else {}
    document = MemoryProfile.of_explained(
        explained, uses=explained.uses(), **now, **present(thresholds=thresholds)
    )
    output.answer(document, _parts(explained))
    less = max(1, plan.micro_batch.value // 2)
    require_met(thresholds, hint=f"--set train.micro_batch={less} needs less memory")


def _parts(explained: Explained) -> Iterator[Part]:
    from llmtrain.cli.plan_tables import assumed_parts, decision_parts, prediction_parts

    yield from assumed_parts(explained.assumed)
    yield from prediction_parts(explained.planned)
    for name, use in explained.uses().items():
        yield f"{name} of the trained model: {format_bytes(use.total_bytes)}"
    yield ""
    yield from decision_parts(explained)


def _measured(output: Output, request: TrainRequest, explained: Explained) -> Explained:
    """Train a few steps and return the plan with their measured memory and speed."""
    from llmtrain.engine.calibrate import calibrate

    planned = explained.planned
    output.note("training a few steps with this plan, in another process…")
    last_run = calibrate(_options(request), planned.facts, planned.workload, planned.plan)
    return replace(explained, planned=replace(planned, last_run=last_run))


def _options(request: TrainRequest) -> list[str]:
    """Return the request as options of `llmtrain train`."""
    flags = [f"{name}={json.dumps(setting.value)}" for name, setting in request.flags.items()]
    profile = [] if request.profile is None else [f"--profile={request.profile}"]
    return [*profile, *(f"--set={text}" for text in [*request.assignments, *flags])]
