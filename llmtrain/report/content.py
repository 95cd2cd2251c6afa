"""What the report says of a run: rows, charts and samples, as plain values for the template."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtrain.profile.load import flat_values
from llmtrain.report.curves import marks
from llmtrain.report.plots import Chart
from llmtrain.report.run_charts import predicted_bytes, run_charts
from llmtrain.report.text_summary import data_rows, tokenizer_rows
from llmtrain.report.values import Row, bits, count, date, figure, known, shown, size
from llmtrain.train.checkpoint.names import list_checkpoints
from llmtrain.train.run_directory.directory import RunDirectory
from llmtrain.train.run_directory.history import RunHistory, read_history
from llmtrain.train.run_directory.running import is_in_training
from llmtrain.train.run_directory.saved_evaluation import SavedEvaluation, read_evaluation
from llmtrain.train.run_directory.task_scores import read_scores
from llmtrain.units import counted, format_duration
from llmtrain.untrusted import read_json

_MOST_SAMPLES = 12
_LONGEST_SAMPLE = 4000  # characters
_MOST_SESSIONS = 20
_BASELINES = {
    "uniform_bpb": "every token as likely as any other",
    "unigram_bpb": "tokens by how often the training text has them",
    "gzip_bpb": "the text compressed by gzip",
    "bzip2_bpb": "compressed by bzip2",
    "xz_bpb": "compressed by xz",
}
_STATES = {"done": "finished", "time": "finished, its time was up", "interrupted": "interrupted"}


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
    is_evaluated: bool  # on all of its validation text, by `llmtrain eval`
    evaluation: list[Row]  # what predicts, bits per byte, what it is
    scores: list[Row]  # task, metric, value, chance, examples, checkpoint
    charts: list[Chart]
    samples: list[Sample]
    plan: list[Row]  # decision, value, reason
    settings: list[Row]  # key, value, origin
    data: list[Row]
    tokenizer: list[Row]
    commands: list[Row]  # when, from which step, command
    hashes: list[Row]
    versions: list[Row]


def run_content(run: RunDirectory, languages: Mapping[str, int] | None = None) -> RunContent:
    """Return what the report says of a run, with the `languages` of its text if they are known.

    Raises UsageError where its files cannot be read.
    """
    record, history, saved = run.read_record(), read_history(run), read_evaluation(run)
    result = record.get("result") or {}
    is_running = not result and is_in_training(run)
    state = _STATES.get(result.get("stopped", ""), "in training" if is_running else "unfinished")
    return RunContent(
        name=run.path.name or str(run.path.absolute().name),
        state=state,
        is_running=is_running,
        results=list(_results(record, history)),
        is_evaluated=saved is not None,
        evaluation=list(_evaluation(saved, record, history)),
        scores=list(_scores(run)),
        charts=[chart for chart in run_charts(record, history) if not chart.is_empty],
        samples=_samples(run),
        plan=[
            (name, shown(choice["value"]), str(choice["reason"]))
            for name, choice in (record.get("plan") or {}).items()
        ],
        settings=list(_settings(record)),
        data=list(data_rows(record, languages)),
        tokenizer=list(tokenizer_rows(run)),
        commands=list(_commands(record)),
        hashes=list(_hashes(run, record)),
        versions=list(_versions(record)),
    )


def _results(record: Mapping[str, Any], history: RunHistory) -> Iterator[Row]:
    """Yield what was predicted beside what was measured."""
    forecast, result = record.get("forecast") or {}, record.get("result") or {}
    last = history.steps[-1] if history.steps else None
    evaluation = history.evaluations[-1] if history.evaluations else None
    best = min((e.val_bpb for e in history.evaluations if math.isfinite(e.val_bpb)), default=None)
    if evaluation is not None:
        yield (
            "bits per byte of validation text",
            figure(forecast.get("val_bpb"), lambda value: f"{value:.3f}"),
            f"{evaluation.val_bpb:.4f}" + (f", best {best:.4f}" if best is not None else ""),
        )
        yield "validation loss, nats per token", "-", f"{evaluation.val_loss:.4f}"
    if last is not None:
        yield "training loss, nats per token", "-", f"{last.loss:.4f}"
        steps, tokens = f"{last.step:,}", count(last.tokens)
        yield "optimizer steps", figure(forecast.get("steps"), lambda v: f"{round(v):,}"), steps
        yield "tokens", figure(forecast.get("tokens"), count), tokens
        rate = known(result.get("tokens_per_s"))
        measured = "-" if rate is None else count(rate)
        yield "tokens per second", figure(forecast.get("tokens_per_s"), count), measured
        seconds = format_duration(known(result.get("seconds")) or last.elapsed_s)
        yield "time", figure(forecast.get("seconds"), format_duration), seconds
    predicted = known(result.get("predicted_peak_bytes")) or predicted_bytes(record)
    peak = known(result.get("peak_memory_bytes"))
    yield "peak memory", size(predicted), size(peak)
    yield "energy of the last session", "-", _energy(result)
    resumes = sum(mark.kind == "resumed" for mark in marks(history, record))
    trouble = (
        (len(history.skipped), "skipped step"),
        (len(history.rewinds), "rewind"),
        (resumes, "resume"),
    )
    yield "trouble", "-", ", ".join(counted(n, what) for n, what in trouble if n) or "none"


def _energy(result: Mapping[str, Any]) -> str:
    """Return the energy, also for a million tokens of the session that it is of."""
    joules = known(result.get("energy_joules"))
    if joules is None:
        return "not counted by this machine" if result else "-"
    steps, per_step = (known(result.get(f"trained_{n}")) for n in ("steps", "tokens_per_step"))
    tokens = (steps or 0.0) * (per_step or 0.0)
    rate = f", {joules / 3600 / (tokens / 1e6):.2f} Wh a million tokens" if tokens else ""
    return f"{joules / 3600:.1f} Wh{rate}"


def _evaluation(
    saved: SavedEvaluation | None, record: Mapping[str, Any], history: RunHistory
) -> Iterator[Row]:
    """Yield bits per byte of the validation text: the model, and what needs no model."""
    if saved is not None:
        interval = ""
        if saved.low is not None and saved.high is not None:
            drawn = counted(saved.units, saved.unit)
            interval = f"; {saved.low:.4f} to {saved.high:.4f} is the 95% interval over {drawn}"
        text = f"{saved.checkpoint} on all {size(saved.bytes)} of it{interval}"
        yield "the model", bits(saved.bits_per_byte), text
    elif history.evaluations:
        last = history.evaluations[-1]
        yield "the model", bits(known(last.val_bpb)), f"at step {last.step:,}, as during training"
    recorded = (record.get("data") or {}).get("baselines")
    baselines = dict(recorded) if isinstance(recorded, Mapping) else {}
    baselines |= {} if saved is None else saved.baselines
    found = {name: known(baselines.get(name)) for name in _BASELINES}
    for name, value in sorted(found.items(), key=lambda item: item[1] or 0.0):
        if value is not None:
            yield name.removesuffix("_bpb"), bits(value), _BASELINES[name]


def _scores(run: RunDirectory) -> Iterator[Row]:
    """Yield scores on tasks, each with its standard error and what guessing would reach."""
    for each in read_scores(run):
        score = each.score
        error = "" if score.standard_error is None else f" ± {score.standard_error:.3f}"
        yield (
            score.task,
            score.metric,
            f"{score.value:.4f}{error}",
            "-" if score.chance is None else f"{score.chance:.3f}",
            f"{score.examples:,}",
            each.checkpoint,
        )


def _samples(run: RunDirectory) -> list[Sample]:
    """Return samples evenly spaced over the run, the last one among them."""
    found = [
        Sample(line["step"], str(line.get("prompt", "")), str(line.get("text", "")))
        for line in run.read_samples()
    ]
    count = min(len(found), _MOST_SAMPLES)
    chosen = [found[len(found) - 1 - len(found) * i // count] for i in reversed(range(count))]
    return [Sample(s.step, s.prompt[:_LONGEST_SAMPLE], s.text[:_LONGEST_SAMPLE]) for s in chosen]


def _hashes(run: RunDirectory, record: Mapping[str, Any]) -> Iterator[Row]:
    """Yield the hashes by which a repeated run is compared: text, tokenizer and weights."""
    data = record.get("data") or {}
    for name, key in (("text", "corpus_sha256"), ("tokenizer", "tokenizer_sha256")):
        if data.get(key):
            yield f"{name}, SHA-256", str(data[key])
    for newest in list_checkpoints(run.checkpoints)[-1:]:
        yield from _weights_hash(newest)


def _weights_hash(newest: Path) -> Iterator[Row]:
    with suppress(OSError, ValueError, KeyError, TypeError):  # of a save that was cut off
        files = read_json(newest / "manifest.json")["files"]
        yield f"weights of {newest.name}, SHA-256", str(files["model.safetensors"]["sha256"])


def _settings(record: Mapping[str, Any]) -> Iterator[Row]:
    origins = record.get("origins") or {}
    for key, value in flat_values(record["profile"]):
        yield key, shown(value), str(origins.get(key, "default"))


def _commands(record: Mapping[str, Any]) -> Iterator[Row]:
    for session in (record.get("sessions") or [])[-_MOST_SESSIONS:]:
        if isinstance(session, Mapping):
            command = session.get("command")
            words = shlex.join(map(str, command)) if command else "called from Python"
            yield date(session.get("begun")), str(session.get("from_step", 0)), words


def _versions(record: Mapping[str, Any]) -> Iterator[Row]:
    yield "llmtrain", str(record.get("llmtrain", "-"))
    for name, version in (record.get("versions") or {}).items():
        yield name, str(version)
    for name, value in flat_values(record.get("machine") or {}):
        yield name, shown(value)
