"""What a training ended with: shown by the command line, and recorded in the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmtrain.engine.find_run import ResolvedRun
from llmtrain.engine.record import (
    write_result,
)
from llmtrain.engine.session_start import (
    prompt_example,
)
from llmtrain.engine.train_session import TrainSession
from llmtrain.plan.forecast import Forecast
from llmtrain.plan.past_runs import record_run
from llmtrain.plan.planned import Planned
from llmtrain.plan.planner import Plan
from llmtrain.prepare.dataset import Dataset
from llmtrain.train.events import TrainResult


def recorded_result(
    resolved: ResolvedRun,
    planned: Planned,
    plan: Plan,
    expected: Forecast,
    dataset: Dataset,
    result: TrainResult,
    session: TrainSession,
) -> TrainResult:
    """Return the result with what was predicted, after recording it in the run."""
    profile = resolved.profile.loaded.profile
    predicted = (resolved.recorded and resolved.recorded.forecast) or expected.document()
    result = replace(
        _with_prediction(result, predicted),
        prompt_example=prompt_example(profile.data, dataset),
        is_chat=profile.data.rows != "text",
        loss_is_per="pair" if profile.data.rows == "preferences" else "token",
    )
    _record(resolved, planned, plan, result)
    if profile.report:
        _write_report(resolved, session)
    return result


def _with_prediction(result: TrainResult, predicted: Mapping[str, Any]) -> TrainResult:
    """Return the result with the rate and the time that were predicted before the run."""
    rate, seconds = (
        (predicted.get(name) or {}).get("value") for name in ("tokens_per_s", "seconds")
    )
    return replace(result, predicted_tokens_per_s=rate, predicted_seconds=seconds)


def _record(resolved: ResolvedRun, planned: Planned, plan: Plan, result: TrainResult) -> None:
    """Save the result in run.yaml, and its rate for the next forecast by this plan."""
    record_run(
        planned.facts,
        planned.workload,
        plan,
        step_s=result.step_s,
        steps=result.trained_steps,
        peak_memory_bytes=result.peak_memory_bytes,
        waited_share=result.waited_share,
    )
    write_result(resolved.directory, result)


def _write_report(resolved: ResolvedRun, session: TrainSession) -> None:
    """Write report.html; a full disk is a warning, as the run itself is saved."""
    from llmtrain.engine.run_report import write_report

    try:
        session.note(f"report: {write_report(resolved.directory)}")
    except OSError as error:
        session.note(f"the report was not written: {error.strerror}", is_warning=True)


def finished_result(resolved: ResolvedRun) -> TrainResult:
    return replace(result_so_far(resolved), already_finished=True)


def result_so_far(resolved: ResolvedRun) -> TrainResult:
    """Return the result of a session that trains nothing: the run's state before it."""
    state = resolved.state
    return TrainResult(
        run=resolved.path,
        checkpoint=resolved.checkpoint,
        steps=state.step if state is not None else 0,
        tokens=state.tokens if state is not None else 0,
        seconds=state.elapsed_s if state is not None else 0.0,
        tokens_per_s=None,
        train_loss=state.train_loss if state is not None else None,
        val_loss=state.val_loss if state is not None else None,
        val_bpb=state.val_bpb if state is not None else None,
        peak_memory_bytes=state.peak_memory_bytes if state is not None else 0,
        predicted_peak_bytes=None,
        stopped="done",
    )
