"""The charts of a run: what it logged, and beside it what was predicted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llmtrain.plan.memory import PREDICTION_ERROR
from llmtrain.report.curves import Curve, Mark, curve, marks, smoothed
from llmtrain.report.plots import Band, Chart
from llmtrain.report.values import known
from llmtrain.train.run_directory.history import LoggedStep, RunHistory


@dataclass(frozen=True, slots=True)
class _Axis:
    """The horizontal axis of charts: its kind, its label, and the attribute of an entry to read."""

    kind: Literal["tokens", "seconds"]
    name: str
    attribute: str

    def curve(self, name: str, entries: Sequence[object], value: str) -> Curve:
        """Return the curve of an attribute of the entries, which are steps or evaluations."""
        return self.through(name, entries, [getattr(each, value) for each in entries])

    def through(self, name: str, entries: Sequence[object], values: Sequence[float]) -> Curve:
        """Return the curve of a value for each of the entries."""
        return curve(name, [getattr(each, self.attribute) for each in entries], values)


_TOKENS = _Axis("tokens", "tokens", "tokens")
_AXES = (_TOKENS, _Axis("seconds", "time", "elapsed_s"))


def run_charts(record: Mapping[str, Any], history: RunHistory) -> Iterator[Chart]:
    """Yield every chart of a run; those without points are empty."""
    events = marks(history, record)
    for axis in _AXES:
        yield from _quality_charts(axis, history, events if axis is _TOKENS else ())
    yield from _step_charts(record, history.steps, events)


def _quality_charts(axis: _Axis, history: RunHistory, events: tuple[Mark, ...]) -> Iterator[Chart]:
    """Yield loss and bits per byte."""
    steps, evaluations = history.steps, history.evaluations
    smooth = smoothed([each.loss for each in steps])
    yield Chart(
        f"Loss by {axis.name}",
        axis.kind,
        "number",
        "nats per token",
        (
            axis.through("training, smoothed", steps, smooth),
            axis.curve("validation", evaluations, "val_loss"),
        ),
        faint=axis.curve("training", steps, "loss"),
        marks=events,
    )
    bpb = axis.curve("validation", evaluations, "val_bpb")
    title = f"Bits per byte by {axis.name}"
    yield Chart(title, axis.kind, "number", "bits per byte", (bpb,), marks=events)


def _step_charts(
    record: Mapping[str, Any], steps: Sequence[LoggedStep], events: tuple[Mark, ...]
) -> Iterator[Chart]:
    """Yield what each step logs, beside what was predicted."""
    rates = _TOKENS.curve("learning rate", steps, "lr")
    yield Chart("Learning rate", "tokens", "number", "of the first group", (rates,))
    norms = _TOKENS.curve("gradient norm", steps, "grad_norm")
    yield Chart(
        "Gradient norm", "tokens", "number", "before clipping", (norms,), marks=events, log_y=True
    )
    speed = _TOKENS.curve("measured", steps, "tokens_per_s")
    rate = known(((record.get("forecast") or {}).get("tokens_per_s") or {}).get("value"))
    level = None if rate is None else ("predicted", rate)
    yield Chart("Speed", "tokens", "rate", "tokens per second", (speed,), level=level)
    memory = _TOKENS.curve("in use", steps, "memory_bytes")
    total = predicted_bytes(record)
    band = None
    if total is not None:
        name = f"predicted peak, ± {PREDICTION_ERROR:.0%}"
        band = Band(name, total * (1 - PREDICTION_ERROR), total * (1 + PREDICTION_ERROR))
    yield Chart("Memory", "tokens", "bytes", "of the device", (memory,), band=band)


def overlay_charts(runs: Sequence[tuple[Path, RunHistory]]) -> list[Chart]:
    """Return the validation curves of several runs in one chart, by tokens and by time."""
    found = []
    for axis in _AXES:
        curves = tuple(
            axis.curve(path.name, history.evaluations, "val_bpb") for path, history in runs
        )
        found.append(
            Chart(f"Validation by {axis.name}", axis.kind, "number", "bits per byte", curves)
        )
    return [chart for chart in found if not chart.is_empty]


def predicted_bytes(record: Mapping[str, Any]) -> float | None:
    """Return the predicted peak of the run's memory; None if run.yaml has none."""
    return known((record.get("predicted") or {}).get("total_bytes"))
