"""`llmtrain runs compare`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from llmtrain.cli import options
from llmtrain.cli.output import Output, escape_control
from llmtrain.errors import UsageError

if TYPE_CHECKING:
    from llmtrain.cli.output import Part
    from llmtrain.documents.compare import RunsCompare, RunVerdict
    from llmtrain.report.comparison import Comparison

_LONGEST_VALUE = 40


def compare(output: Output, runs: options.Runs) -> None:
    """Compare runs: what differs, loss at equal tokens and time, and whether it is noise."""
    from llmtrain.report.comparison import compare_runs

    if len(runs) < 2:
        raise UsageError("one run is named, and it takes two to compare", hint="llmtrain runs list")
    document = compared_document(compare_runs(runs))
    output.answer(document, compared_parts(document, output))


def compared_document(comparison: Comparison) -> RunsCompare:
    """Return the comparison as it is published."""
    from llmtrain.documents.compare import RunCompared, RunsCompare

    rows = []
    for run in comparison.runs:
        last = run.last
        rows.append(
            RunCompared.of(
                run=run.path,
                profile=run.record["profile"].get("name"),
                step=last.step if last else 0,
                tokens=last.tokens if last else None,
                elapsed_s=last.elapsed_s if last else None,
                val_bpb=last.val_bpb if last else None,
                seeds=max(1, len(run.same_settings_bpb)),
            )
        )
    return RunsCompare.of(comparison, runs=rows)


def compared_parts(document: RunsCompare, output: Output) -> Iterator[Part]:
    """Yield tables of results and differences, and a verdict on each later run."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for run in document.runs:
        table.add_column(Text(escape_control(run.run)), justify="right", overflow="fold")

    for row in _rows(document):
        table.add_row(*(Text(escape_control(cell)) for cell in row))
    yield table
    yield ""
    for verdict in document.verdicts:
        yield from output.wrapped(f"{verdict.run}: {verdict_in_words(verdict)}")
        yield from output.wrapped(verdict.reason, "  ")


def _rows(document: RunsCompare) -> Iterator[tuple[str, ...]]:
    """Yield the name of each figure or setting, and its value in each run."""
    from llmtrain.units import format_duration

    runs = document.runs
    yield "profile", *(run.profile or "-" for run in runs)
    yield "bits per byte", *(_figure(run.val_bpb) for run in runs)
    yield "tokens", *(_count(run.tokens) for run in runs)
    yield "time", *(_duration(run.elapsed_s) for run in runs)
    if document.at_equal_tokens is not None:
        at = document.at_equal_tokens
        yield f"at {_count(at.amount)} tokens", *map(_figure, at.val_bpb)
    if document.at_equal_time is not None:
        at = document.at_equal_time
        yield f"after {format_duration(at.amount)}", *map(_figure, at.val_bpb)
    if document.to_equal_loss is not None:
        to = document.to_equal_loss
        yield f"tokens to {to.val_bpb:.4f}", *map(_count, to.tokens)
        yield f"time to {to.val_bpb:.4f}", *map(_duration, to.seconds)
    for task in document.tasks:
        yield f"{task.task} {task.metric}", *map(_figure, task.values, task.standard_errors)
    for row in document.differing:
        yield row.name, *map(_short, row.values)


def verdict_in_words(verdict: RunVerdict) -> str:
    """Return the outcome with its figures."""
    if verdict.difference_bpb is None:
        return verdict.outcome
    words = f"{verdict.outcome}: {verdict.difference_bpb:+.4f} bits per byte"
    if verdict.margin_bpb is None:
        return words
    return f"{words}, noise is up to {verdict.margin_bpb:.4f}"


def _figure(value: float | None, error: float | None = None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if error is None else f"{value:.4f} ± {error:.4f}"


def _count(number: float | None) -> str:
    from llmtrain.units import format_count

    return "-" if number is None else format_count(round(number))


def _duration(seconds: float | None) -> str:
    from llmtrain.units import format_duration

    return "-" if seconds is None else format_duration(seconds)


def _short(value: Any) -> str:
    text = "-" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 1] + "…"
