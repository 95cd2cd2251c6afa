"""What training a profile will take: `llmtrain memory --profile`."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

from llmtrain.cli.memory.now import memory_now
from llmtrain.cli.output import Output
from llmtrain.cli.thresholds import (
    FAIL_OVER,
    Threshold,
    bytes_at_most,
    require_met,
    thresholds_document,
)
from llmtrain.units import format_bytes

if TYPE_CHECKING:
    from llmtrain.engine.explain import Explained
    from llmtrain.engine.request import TrainRequest


def show_memory_of_profile(
    output: Output,
    request: TrainRequest,
    limit_bytes: int | None,
    *,
    calibrates: bool,
    as_json: bool,
) -> int:
    """What training a profile takes is told; measured, too, where a run was or now is."""
    from llmtrain.cli.explain import (
        explained_document,
        show_assumed,
        show_decisions,
        show_prediction,
    )
    from llmtrain.engine.explain import explain

    explained = explain(request)
    if calibrates:
        explained = _measured(output, request, explained)
    thresholds = [_peak(explained, limit_bytes)] if limit_bytes is not None else []
    if as_json:
        # What is in use here and now is no part of a machine that is not here.
        now = memory_now() if request.assumed is None else {}
        uses = {name: use.items() for name, use in explained.uses().items()}
        document = explained_document(explained) | {"uses": uses}
        output.document(document | now | thresholds_document(thresholds))
    else:
        show_assumed(output, request.assumed)
        show_prediction(output, explained)
        for name, use in explained.uses().items():
            output.result(f"{name} of the trained model: {format_bytes(use.total_bytes)}")
        output.result("")
        show_decisions(output, explained)
    less = max(1, explained.planned.plan.micro_batch.value // 2)
    require_met(thresholds, hint=f"--set train.micro_batch={less} takes less")
    return 0


def _peak(explained: Explained, limit_bytes: int) -> Threshold:
    """What is compared with --fail-over where a profile is named."""
    plan, peak_bytes = explained.planned.plan, explained.planned.prediction.total_bytes
    name = f"the predicted peak of {explained.profile.value} on {plan.device.value}"
    return bytes_at_most(FAIL_OVER, limit_bytes, peak_bytes, is_named=name)


def _measured(output: Output, request: TrainRequest, explained: Explained) -> Explained:
    """The same with what a few steps came to."""
    from llmtrain.engine.calibrate import calibrate

    planned = explained.planned
    output.note("training a few steps as planned, in a process of its own…")
    kept = calibrate(_options(request), planned.facts, planned.workload, planned.plan)
    return replace(explained, planned=replace(planned, kept=kept))


def _options(request: TrainRequest) -> list[str]:
    """The request as `llmtrain train` takes it."""
    flags = [f"{name}={json.dumps(setting.value)}" for name, setting in request.flags.items()]
    profile = [] if request.profile is None else [f"--profile={request.profile}"]
    return [*profile, *(f"--set={text}" for text in [*request.assignments, *flags])]
