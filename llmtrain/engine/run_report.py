"""Write the report of runs: from what they recorded to one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from llmtrain.files import write_text_atomically
from llmtrain.report.comparison import Comparison, compare_runs
from llmtrain.report.content import RunContent, run_content
from llmtrain.report.page import SideBySide, render_report
from llmtrain.report.plots import require_plots
from llmtrain.report.run_charts import overlay_charts
from llmtrain.report.text_summary import detected_languages
from llmtrain.report.values import Row
from llmtrain.train.run_directory.directory import RunDirectory
from llmtrain.train.run_directory.find import find_run
from llmtrain.units import format_count, format_duration

REPORT_FILE = "report.html"


class Reporter:
    """Writes reports of the same runs again and again: what cannot change is read once."""

    def __init__(self, names: Sequence[str]) -> None:
        """Raise UsageError where a library or a run is missing."""
        require_plots()
        self._names = names
        self._languages: dict[Path, dict[str, int] | None] = {}

    def report(self, *, refresh_s: int | None = None) -> str:
        """Return the report of the runs as HTML; several are compared first.

        `refresh_s`: the page loads itself again while any run is being trained. Raises UsageError.
        """
        contents = [self._content(find_run(name)) for name in self._names]
        is_running = any(content.is_running for content in contents)
        return render_report(
            contents,
            _side_by_side(compare_runs(self._names)) if len(self._names) > 1 else None,
            written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
            refresh_s=refresh_s if is_running else None,
        )

    def _content(self, run: RunDirectory) -> RunContent:
        if self._languages.get(run.path) is None:  # without a checkpoint yet, it is tried again
            self._languages[run.path] = detected_languages(run, run.read_record())
        return run_content(run, self._languages[run.path])


def report_of(names: Sequence[str]) -> str:
    """Return the report of the runs as HTML; several are compared first. Raises UsageError."""
    return Reporter(names).report()


def write_report(run: RunDirectory) -> Path:
    """Write the report of a run beside its run.yaml; return its path."""
    path = run.path / REPORT_FILE
    write_text_atomically(path, report_of([str(run.path)]))
    return path


def _side_by_side(comparison: Comparison) -> SideBySide:
    names = tuple(run.path.name for run in comparison.runs)
    curves = [(run.path, run.history) for run in comparison.runs]
    verdicts: list[Row] = []
    for verdict in comparison.verdicts:
        outcome = str(verdict.outcome)
        if verdict.difference_bpb is not None:
            outcome += f", {verdict.difference_bpb:+.4f} bits per byte beside {names[0]}"
        if verdict.margin_bpb is not None:
            outcome += f"; noise is up to {verdict.margin_bpb:.4f}"
        verdicts.append((verdict.run.name, outcome, verdict.reason))
    return SideBySide(names, list(_rows(comparison)), overlay_charts(curves), verdicts)


def _rows(comparison: Comparison) -> list[Row]:
    last = [run.last for run in comparison.runs]
    rows: list[Row] = [
        ("bits per byte", *("-" if e is None else f"{e.val_bpb:.4f}" for e in last)),
        ("tokens", *("-" if e is None else format_count(round(e.tokens)) for e in last)),
        ("time", *("-" if e is None else format_duration(e.elapsed_s) for e in last)),
    ]
    if (at := comparison.at_equal_tokens) is not None:
        rows.append((f"at {format_count(round(at.amount))} tokens", *map(_bits, at.val_bpb)))
    if (at := comparison.at_equal_time) is not None:
        rows.append((f"after {format_duration(at.amount)}", *map(_bits, at.val_bpb)))
    if (to := comparison.to_equal_loss) is not None:
        tokens = ("-" if v is None else format_count(round(v)) for v in to.tokens)
        seconds = ("-" if v is None else format_duration(v) for v in to.seconds)
        rows.append((f"tokens to {to.val_bpb:.4f}", *tokens))
        rows.append((f"time to {to.val_bpb:.4f}", *seconds))
    for task in comparison.tasks:
        rows.append((f"{task.task} {task.metric}", *map(_bits, task.values)))
    for each in comparison.differing:
        rows.append((each.name, *("-" if v is None else str(v) for v in each.values)))
    return rows


def _bits(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
