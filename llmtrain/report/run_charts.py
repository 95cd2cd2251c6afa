"""The charts of a run: what it logged, and beside it what was predicted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmtrain.plan.memory import PREDICTION_ERROR
from llmtrain.report.curves import curve, marks, smoothed
from llmtrain.report.plots import Band, Chart
from llmtrain.report.values import known
from llmtrain.train.run_directory.history import RunHistory


def run_charts(record: Mapping[str, Any], history: RunHistory) -> Iterator[Chart]:
    """Yield every chart of a run; those without points are empty."""
    steps, evaluations = history.steps, history.evaluations
    events = marks(history, record)
    by_tokens = [each.tokens for each in steps]
    by_time = [each.elapsed_s for each in steps]
    losses = [each.loss for each in steps]
    for x, xs, axis in (("tokens", by_tokens, "tokens"), ("seconds", by_time, "elapsed_s")):
        kind: Any = x
        validation = curve(
            "validation",
            [getattr(each, axis) for each in evaluations],
            [each.val_loss for each in evaluations],
        )
        yield Chart(
            f"Loss by {'tokens' if x == 'tokens' else 'time'}",
            kind,
            "number",
            "nats per token",
            (curve("training, smoothed", xs, smoothed(losses)), validation),
            faint=curve("training", xs, losses),
            marks=events if x == "tokens" else (),
        )
        bpb = curve(
            "validation",
            [getattr(each, axis) for each in evaluations],
            [each.val_bpb for each in evaluations],
        )
        yield Chart(
            f"Bits per byte by {'tokens' if x == 'tokens' else 'time'}",
            kind,
            "number",
            "bits per byte",
            (bpb,),
            marks=events if x == "tokens" else (),
        )
    rates = curve("learning rate", by_tokens, [each.lr for each in steps])
    yield Chart("Learning rate", "tokens", "number", "of the first group", (rates,))
    norms = curve("gradient norm", by_tokens, [each.grad_norm for each in steps])
    yield Chart(
        "Gradient norm", "tokens", "number", "before clipping", (norms,), marks=events, log_y=True
    )
    speed = curve("measured", by_tokens, [each.tokens_per_s for each in steps])
    rate = known(((record.get("forecast") or {}).get("tokens_per_s") or {}).get("value"))
    level = None if rate is None else ("predicted", rate)
    yield Chart("Speed", "tokens", "rate", "tokens per second", (speed,), level=level)
    memory = curve("in use", by_tokens, [each.memory_bytes for each in steps])
    total = predicted_bytes(record)
    band = None
    if total is not None:
        name = f"predicted peak, ± {PREDICTION_ERROR:.0%}"
        band = Band(name, total * (1 - PREDICTION_ERROR), total * (1 + PREDICTION_ERROR))
    yield Chart("Memory", "tokens", "bytes", "of the device", (memory,), band=band)


def overlay_charts(runs: Sequence[tuple[Path, RunHistory]]) -> list[Chart]:
    """Return the validation curves of several runs in one chart, by tokens and by time."""
    found = []
    for x, axis in (("tokens", "tokens"), ("seconds", "elapsed_s")):
        curves = tuple(
            curve(
                path.name,
                [getattr(each, axis) for each in history.evaluations],
                [each.val_bpb for each in history.evaluations],
            )
            for path, history in runs
        )
        title = f"Validation by {'tokens' if x == 'tokens' else 'time'}"
        kind: Any = x
        found.append(Chart(title, kind, "number", "bits per byte", curves))
    return [chart for chart in found if not chart.is_empty]


def predicted_bytes(record: Mapping[str, Any]) -> float | None:
    """Return the predicted peak of the run's memory; None if run.yaml has none."""
    return known((record.get("predicted") or {}).get("total_bytes"))
