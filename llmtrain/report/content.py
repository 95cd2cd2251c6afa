"""What the report says of a run: rows, charts and samples, as plain values for the template."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from llmtrain.profile.load import flat_values
from llmtrain.report.curves import curve, marks, smoothed
from llmtrain.report.plots import Chart
from llmtrain.train.run_directory.directory import RunDirectory
from llmtrain.train.run_directory.history import RunHistory, read_history
from llmtrain.train.run_directory.running import is_in_training
from llmtrain.units import counted, format_bytes, format_count, format_duration

_MOST_SAMPLES = 12
_LONGEST_SAMPLE = 4000  # characters
_MOST_SESSIONS = 20
_STATES = {"done": "finished", "time": "finished, its time was up", "interrupted": "interrupted"}
Row = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """A text sampled during the run."""

    step: int
    prompt: str
    text: str


@dataclass(frozen=True, slots=True)
class RunContent:
    """Everything about one run, in the order of the page."""

    name: str
    state: str
    is_running: bool
    results: list[Row]  # name, predicted, measured
    scores: list[Row]  # name, bits per byte, words
    charts: list[Chart]
    samples: list[Sample]
    plan: list[Row]  # decision, value, reason
    settings: list[Row]  # key, value, origin
    data: list[Row]
    commands: list[Row]  # when, from which step, command
    versions: list[Row]


def run_content(run: RunDirectory, scores: Sequence[Row] = ()) -> RunContent:
    """Return what the report says of a run. Raises UsageError where its files cannot be read."""
    record, history = run.read_record(), read_history(run)
    result = record.get("result") or {}
    is_running = not result and is_in_training(run)
    state = _STATES.get(result.get("stopped", ""), "in training" if is_running else "unfinished")
    return RunContent(
        name=run.path.name or str(run.path.absolute().name),
        state=state,
        is_running=is_running,
        results=list(_results(record, history)),
        scores=list(scores),
        charts=[chart for chart in _charts(record, history) if not chart.is_empty],
        samples=_samples(run),
        plan=[
            (name.replace("_", " "), _value(choice["value"]), str(choice["reason"]))
            for name, choice in (record.get("plan") or {}).items()
        ],
        settings=list(_settings(record)),
        data=list(_data(record)),
        commands=list(_commands(record)),
        versions=list(_versions(record)),
    )


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


def _results(record: Mapping[str, Any], history: RunHistory) -> Iterator[Row]:
    """Yield what was predicted beside what was measured."""
    forecast, result = record.get("forecast") or {}, record.get("result") or {}
    last = history.steps[-1] if history.steps else None
    evaluation = history.evaluations[-1] if history.evaluations else None
    best = min((e.val_bpb for e in history.evaluations if math.isfinite(e.val_bpb)), default=None)
    if evaluation is not None:
        yield (
            "bits per byte of validation text",
            _figure(forecast.get("val_bpb"), lambda value: f"{value:.3f}"),
            f"{evaluation.val_bpb:.4f}" + (f", best {best:.4f}" if best is not None else ""),
        )
        yield "validation loss, nats per token", "-", f"{evaluation.val_loss:.4f}"
    if last is not None:
        yield "training loss, nats per token", "-", f"{last.loss:.4f}"
        steps, tokens = f"{last.step:,}", _count(last.tokens)
        yield "optimizer steps", _figure(forecast.get("steps"), lambda v: f"{round(v):,}"), steps
        yield "tokens", _figure(forecast.get("tokens"), _count), tokens
        rate = _known(result.get("tokens_per_s"))
        measured = "-" if rate is None else _count(rate)
        yield "tokens per second", _figure(forecast.get("tokens_per_s"), _count), measured
        seconds = format_duration(_known(result.get("seconds")) or last.elapsed_s)
        yield "time", _figure(forecast.get("seconds"), format_duration), seconds
    predicted = _known(result.get("predicted_peak_bytes")) or _predicted_bytes(record)
    peak = _known(result.get("peak_memory_bytes"))
    yield "peak memory", _size(predicted), _size(peak)
    if (joules := _known(result.get("energy_joules"))) is not None:
        yield "energy of the last session", "-", f"{joules / 3600:.1f} Wh"
    if history.skipped or history.rewinds:
        trouble = [counted(len(history.skipped), "skipped step")]
        trouble.append(counted(len(history.rewinds), "rewind"))
        yield "trouble", "-", ", ".join(trouble)


def _charts(record: Mapping[str, Any], history: RunHistory) -> Iterator[Chart]:
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
    bpb = curve("validation", [e.tokens for e in evaluations], [e.val_bpb for e in evaluations])
    yield Chart("Bits per byte", "tokens", "number", "bits per byte", (bpb,), marks=events)
    rates = curve("learning rate", by_tokens, [each.lr for each in steps])
    yield Chart("Learning rate", "tokens", "number", "of the first group", (rates,))
    norms = curve("gradient norm", by_tokens, [each.grad_norm for each in steps])
    yield Chart(
        "Gradient norm", "tokens", "number", "before clipping", (norms,), marks=events, log_y=True
    )
    speed = curve("measured", by_tokens, [each.tokens_per_s for each in steps])
    rate = _known(((record.get("forecast") or {}).get("tokens_per_s") or {}).get("value"))
    level = None if rate is None else ("predicted", rate)
    yield Chart("Speed", "tokens", "rate", "tokens per second", (speed,), level=level)
    memory = curve("in use", by_tokens, [each.memory_bytes for each in steps])
    total = _predicted_bytes(record)
    level = None if total is None else ("predicted peak", total)
    yield Chart("Memory", "tokens", "bytes", "of the device", (memory,), level=level)


def _samples(run: RunDirectory) -> list[Sample]:
    """Return samples evenly spaced over the run, the last one among them."""
    found = [
        Sample(line["step"], str(line.get("prompt", "")), str(line.get("text", "")))
        for line in run.read_samples()
    ]
    count = min(len(found), _MOST_SAMPLES)
    chosen = [found[len(found) - 1 - len(found) * i // count] for i in reversed(range(count))]
    return [Sample(s.step, s.prompt[:_LONGEST_SAMPLE], s.text[:_LONGEST_SAMPLE]) for s in chosen]


def _settings(record: Mapping[str, Any]) -> Iterator[Row]:
    origins = record.get("origins") or {}
    for key, value in flat_values(record["profile"]):
        yield key, _value(value), str(origins.get(key, "default"))


def _data(record: Mapping[str, Any]) -> Iterator[Row]:
    data = record.get("data") or {}
    for source in data.get("sources") or []:
        if isinstance(source, Mapping):
            files = counted(round(_known(source.get("files")) or 0), "file")
            yield "text", f"{source.get('spec')}: {source.get('kind', 'text')}, {files}"
            for reason, count in flat_values(source.get("skipped") or {}):
                yield "not read", f"{reason}: {_value(count)}"
    for each in data.get("left_out") or []:
        if isinstance(each, Mapping):
            words = (f"{name.replace('_', ' ')} {_value(v)}" for name, v in flat_values(each))
            yield "left out", ", ".join(words)
    for name in ("train_tokens", "validation_tokens"):
        if (tokens := _known(data.get(name))) is not None:
            yield name.replace("_", " "), _count(tokens)
    leakage = data.get("leakage")
    if isinstance(leakage, Mapping):
        yield (
            "validation text that training text holds too",
            f"{leakage.get('copies')} of {leakage.get('held_out')} {leakage.get('units')}",
        )
    for name in ("corpus_sha256", "tokenizer_sha256"):
        if data.get(name):
            yield name.replace("_", " "), str(data[name])


def _commands(record: Mapping[str, Any]) -> Iterator[Row]:
    for session in (record.get("sessions") or [])[-_MOST_SESSIONS:]:
        if isinstance(session, Mapping):
            command = session.get("command")
            words = shlex.join(map(str, command)) if command else "called from Python"
            yield _date(session.get("begun")), str(session.get("from_step", 0)), words


def _versions(record: Mapping[str, Any]) -> Iterator[Row]:
    yield "llmtrain", str(record.get("llmtrain", "-"))
    for name, version in (record.get("versions") or {}).items():
        yield name, str(version)
    for name, value in flat_values(record.get("machine") or {}):
        yield name, _value(value)


def _figure(figure: Mapping[str, Any] | None, show: Any) -> str:
    """Return a forecast's value with its range."""
    if not figure:
        return "-"
    text = str(show(figure["value"]))
    low, high = _known(figure.get("low")), _known(figure.get("high"))
    return text if low is None or high is None else f"{text} ({show(low)} to {show(high)})"


def _predicted_bytes(record: Mapping[str, Any]) -> float | None:
    return _known((record.get("predicted") or {}).get("total_bytes"))


def _known(value: object) -> float | None:
    """Return a number of a file that anybody may have written; None if it is none."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None  # type: ignore[arg-type]


def _size(size_bytes: float | None) -> str:
    return "-" if size_bytes is None else format_bytes(round(size_bytes))


def _count(number: float) -> str:
    return format_count(round(number)) if math.isfinite(number) else "-"


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_value, value)) or "none"
    return str(value)


def _date(text: object) -> str:
    try:
        return datetime.fromisoformat(str(text)).astimezone().strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError, OSError):
        return "-"
