"""`llmtrain runs list|show`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmtrain.cli.command import command, group
from llmtrain.cli.options import JsonOption
from llmtrain.cli.use import RunArgument
from llmtrain.cli.voice import Voice

if TYPE_CHECKING:
    from llmtrain.train.rundir import RunDirectory


def register(app: typer.Typer) -> None:
    """`runs` is a group of `app`."""
    runs = group("Past runs.")
    app.add_typer(runs, name="runs")
    command(runs, "list")(list_runs)
    command(runs, "show")(show)


def list_runs(
    voice: Voice,
    directory: Annotated[
        Path, typer.Argument(metavar="DIRECTORY", help="Where the runs are.")
    ] = Path("runs"),
    json: JsonOption = False,
) -> int:
    """Every run, with where it stands."""
    from llmtrain.errors import UsageError
    from llmtrain.train.rundir import all_runs

    rows = []
    for run in all_runs(directory):
        try:
            rows.append(run_summary(run))
        except UsageError as error:
            voice.warning(error.message)
    if json:
        voice.document({"runs": rows})
        return 0
    for row in rows:
        loss = f"{row['val_bpb']:.4f} bits/byte" if row["val_bpb"] is not None else "not evaluated"
        voice.result(f"{row['run']:<44}{row['step']:>8} steps   {loss:<20} {row['status']}")
    if not rows:
        voice.note(f"no runs under {directory}; start one with: llmtrain train")
    return 0


def show(voice: Voice, run: RunArgument, json: JsonOption = False) -> int:
    """One run: what was asked, what was decided, what came out."""
    from llmtrain.train.rundir import find_run

    directory = find_run(run)
    record = directory.read_record()
    summary = run_summary(directory)
    if json:
        voice.document({**summary, "record": record})
        return 0
    for name, value in summary.items():
        if value is not None:
            voice.result(f"{name:<18}{value}")
    voice.result("")
    for name, choice in record.get("plan", {}).items():
        voice.result(f"{name:<18}{choice['value']!s:<9} {choice['reason']}")
    return 0


def run_summary(run: RunDirectory) -> dict[str, Any]:
    """Where a run stands, from its own files."""
    from llmtrain.train.checkpoint import list_checkpoints

    metrics, record = run.read_metrics(), run.read_record()
    steps = [line for line in metrics if "loss" in line]
    evaluations = [line for line in metrics if line.get("val_loss") is not None]
    checkpoints = list_checkpoints(run.checkpoints)
    last = evaluations[-1] if evaluations else {}
    return {
        "run": str(run.path),
        "profile": record["profile"].get("name"),
        "step": steps[-1]["step"] if steps else 0,
        "tokens": steps[-1]["tokens"] if steps else 0,
        "train_loss": steps[-1]["loss"] if steps else None,
        "val_loss": last.get("val_loss"),
        "val_bpb": last.get("val_bpb"),
        "best_val_loss": min((line["val_loss"] for line in evaluations), default=None),
        "elapsed_s": steps[-1]["elapsed_s"] if steps else 0.0,
        "checkpoints": [path.name for path in checkpoints],
        "status": record.get("result", {}).get("stopped", "unfinished"),
    }
