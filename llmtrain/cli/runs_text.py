"""Past runs as text for people."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from llmtrain.cli.output import escape_control
from llmtrain.cli.tables import facts_table, plain_value, rows_table
from llmtrain.documents.runs import Run
from llmtrain.units import counted, format_count, format_duration

if TYPE_CHECKING:
    from llmtrain.cli.output import Part

_WIDE_COLUMNS = 90
_STATUS = {"done": "all steps done", "time": "its time was up"}


def runs_parts(runs: Sequence[Run], columns: int) -> Iterator[Table]:
    """Yield a table of runs, if there are any; a narrow one without dates and profiles."""
    if not runs:
        return
    rows = [
        {
            "run": run.run,
            "started": _date(run.started),
            "profile": run.profile or "-",
            "steps": f"{run.step:,}",
            "bits/byte": "-" if run.val_bpb is None else f"{run.val_bpb:.4f}",
            "state": run.state,
        }
        for run in runs
    ]
    omitted = {"started", "profile"} if columns < _WIDE_COLUMNS else set()
    table = Table(box=None, pad_edge=False)
    for name in (each for each in rows[0] if each not in omitted):
        is_number = name in ("steps", "bits/byte")
        table.add_column(
            name,
            justify="right" if is_number else "left",
            no_wrap=name != "run",
            overflow="fold",
        )
    for row in rows:
        cells = (value for name, value in row.items() if name not in omitted)
        table.add_row(*(Text(escape_control(cell)) for cell in cells))
    yield table


def run_parts(run: Run, record: Mapping[str, Any], plot: Text | None = None) -> Iterator[Part]:
    """Yield what a run is, did and reached, its curves, and every decision of its plan."""
    yield facts_table(_facts(run, record))
    if plot is not None:
        yield ""
        yield plot
    yield ""
    rows = [
        (name, plain_value(choice["value"]), str(choice["reason"]))
        for name, choice in record.get("plan", {}).items()
    ]
    yield rows_table("plan", ("decision", "value", "reason"), rows)


def _facts(run: Run, record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "run", run.run
    yield "profile", run.profile or "-"
    how = _STATUS.get(run.status)
    yield "state", f"{run.state}: {how}" if how and run.state == "finished" else run.state
    sessions = [each for each in record.get("sessions") or [] if isinstance(each, Mapping)]
    yield "started", f"{_date(run.started)}, {counted(len(sessions), 'session')}"
    if sessions and sessions[0].get("command"):
        yield "command", shlex.join(map(str, sessions[0]["command"]))
    if sessions and sessions[-1].get("ranks"):
        yield "ranks", _ranks(sessions[-1]["ranks"])
    data = record.get("data") or {}
    for source in data.get("sources", ()):
        yield "text", f"{source.get('spec')}, {counted(source.get('files', 0), 'file')}"
    if "train_tokens" in data:
        train, validation = data["train_tokens"], data.get("validation_tokens", 0)
        yield (
            "tokens",
            f"{format_count(train)} to train on, {format_count(validation)} to validate",
        )
    amount = f"{counted(run.step, 'step')}, {format_count(run.tokens)} tokens"
    yield "progress", f"{amount}, {format_duration(run.elapsed_s)}"
    section = (record.get("profile") or {}).get("data") or {}
    unit = "nats/pair" if section.get("rows") == "preferences" else "nats/token"
    if run.train_loss is not None:
        yield "training loss", f"{run.train_loss:.4f} {unit} at that step"
    if run.val_loss is not None and run.val_bpb is not None:
        best = f", best {run.best_val_loss:.4f}" if run.best_val_loss is not None else ""
        yield (
            "validation loss",
            f"{run.val_loss:.4f} {unit}{best}; {run.val_bpb:.4f} bits/byte",
        )
    if run.tags:
        yield "tags", ", ".join(run.tags)
    yield "checkpoints", ", ".join(run.checkpoints) or "none"


def _ranks(ranks: Mapping[str, Any]) -> str:
    """Return `4 on 2 machines (2, 2), over gloo, started by torchrun`."""
    text, machines = str(ranks["processes"]), ranks["of_machines"]
    if machines:
        text += f" on {counted(len(machines), 'machine')}"
    if machines and len(machines) > 1:
        text += f" ({', '.join(map(str, machines))})"
    by = "environment variables" if ranks["by"] == "environment" else ranks["by"]
    return f"{text}, over {ranks['backend']}, started by {by}"


def _date(text: str | None) -> str:
    """Return `2026-01-31 07:30` in local time."""
    try:
        return datetime.fromisoformat(text or "").astimezone().strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError, OSError):
        return "-"
