"""`llmtrain runs list|show|verify|prove-resume`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmtrain.cli import prove_resume
from llmtrain.cli.command import command, group
from llmtrain.cli.options import JsonOption, RunArgument
from llmtrain.cli.output import Output

if TYPE_CHECKING:
    from llmtrain.documents.runs import Run
    from llmtrain.train.run_directory.directory import RunDirectory

Numbers = dict[str, float]
_STATES = {"done": "finished", "time": "finished", "interrupted": "interrupted"}


def register(app: typer.Typer) -> None:
    """Add the group `runs` to `app`."""
    runs = group("Past runs.")
    app.add_typer(runs, name="runs")
    command(runs, "list", "llmtrain runs list")(list_runs)
    command(runs, "show", "llmtrain runs show my-run")(show)
    command(runs, "verify", "llmtrain runs verify my-run")(verify)
    command(runs, "prove-resume", "llmtrain runs prove-resume --profile cpu-tiny")(
        prove_resume.prove_resume
    )


def list_runs(
    output: Output,
    directory: Annotated[
        Path, typer.Argument(metavar="DIRECTORY", help="The directory of the runs.")
    ] = Path("runs"),
    json: JsonOption = False,
) -> int:
    """List runs: when each began, its profile, last step, loss and state."""
    from llmtrain.cli.runs_text import runs_table
    from llmtrain.documents.runs import RunsList
    from llmtrain.errors import LlmtrainError
    from llmtrain.train.run_directory.running import listed_runs

    rows = []
    for run in listed_runs(directory):
        try:
            rows.append(run_summary(run))
        except LlmtrainError as error:
            output.warning(error.message)
    if json:
        output.document(RunsList.of(runs=rows))
        return 0
    if rows:
        output.show(runs_table(rows, output.stdout.width))
    else:
        output.note(f"no runs under {directory}; start one with llmtrain train")
    return 0


def show(output: Output, run: RunArgument, json: JsonOption = False) -> int:
    """Show one run: its result and every decision of its plan."""
    from llmtrain.cli.runs_text import run_facts
    from llmtrain.cli.tables import facts_table, plain_value, rows_table
    from llmtrain.documents.runs import RunsShow
    from llmtrain.train.run_directory.directory import find_run

    directory = find_run(run)
    record = directory.read_record()
    summary = run_summary(directory)
    if json:
        output.document(RunsShow.of(summary, record=record))
        return 0
    output.show(facts_table(run_facts(summary, record)))
    output.result("")
    rows = [
        (name.replace("_", " "), plain_value(choice["value"]), str(choice["reason"]))
        for name, choice in record.get("plan", {}).items()
    ]
    output.show(rows_table("plan", ("decision", "value", "reason"), rows))
    return 0


def verify(output: Output, run: RunArgument, json: JsonOption = False) -> int:
    """Check every file of a run's checkpoints against its hash; nothing is changed."""
    from llmtrain.documents.runs import RunsVerify
    from llmtrain.train.run_directory.verify import verify_run

    found = verify_run(run)
    if json:
        output.document(RunsVerify.of_verified(found))
    else:
        for name in found.good:
            output.result(f"good        {name}")
        for name, why in found.damaged.items():
            output.result(f"damaged     {name}: {why}")
        for name, why in found.unreadable.items():
            output.result(f"unreadable  {name}: {why}")
        newest = found.newest_good
        output.note(f"newest good: {newest}" if newest else "no checkpoint is good")
    return 1 if found.damaged or found.unreadable else 0


def run_summary(run: RunDirectory) -> Run:
    """Return the progress of a run, read from its files. Raises UsageError."""
    from llmtrain.documents.runs import Run
    from llmtrain.train.checkpoint.format import list_checkpoints
    from llmtrain.train.run_directory.running import is_in_training

    record = run.read_record()
    step, evaluation, best = _last_lines(run)
    status = (record.get("result") or {}).get("stopped", "unfinished")
    return Run.of(
        run=run.path,
        profile=record["profile"].get("name"),
        step=step.get("step", 0),
        tokens=step.get("tokens", 0),
        train_loss=step.get("loss"),
        val_loss=evaluation.get("val_loss"),
        val_bpb=evaluation.get("val_bpb"),
        best_val_loss=best,
        elapsed_s=step.get("elapsed_s", 0.0),
        checkpoints=[path.name for path in list_checkpoints(run.checkpoints)],
        status=status,
        state=_STATES.get(status) or ("running" if is_in_training(run) else "crashed"),
        started=sessions[0].get("begun") if (sessions := record.get("sessions")) else None,
    )


def _last_lines(run: RunDirectory) -> tuple[Numbers, Numbers, float | None]:
    """Return the last step, the last evaluation and the lowest validation loss of metrics.jsonl."""
    step: Numbers = {}
    evaluation: Numbers = {}
    best: float | None = None
    for line in run.read_metrics():
        numbers = {name: value for name, value in line.items() if type(value) in (int, float)}
        if "loss" in numbers:
            step = numbers
        if "val_loss" in numbers:
            evaluation, loss = numbers, numbers["val_loss"]
            best = loss if best is None else min(best, loss)
    return step, evaluation, best
