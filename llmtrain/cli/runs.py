"""`llmtrain runs list|show|verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmtrain.cli import options
from llmtrain.cli.output import Output

if TYPE_CHECKING:
    from llmtrain.documents.runs import Run
    from llmtrain.train.run_directory.directory import RunDirectory

Numbers = dict[str, float]
_STATES = {"done": "finished", "time": "finished", "interrupted": "interrupted"}


def list_runs(
    output: Output,
    directory: Annotated[
        Path, typer.Argument(metavar="DIRECTORY", help="The directory of the runs.")
    ] = Path("runs"),
    where: Annotated[
        list[str] | None,
        typer.Option(
            "--where",
            metavar="KEY=VALUE",
            help="Only runs with that value; also !=, <, >, <=, >=. KEY is one of --json, as "
            "val_bpb, state or tags, or one of the profile. Repeatable.",
        ),
    ] = None,
    sort: Annotated[
        str | None, typer.Option("--sort", metavar="KEY", help="Order by that value, lowest first.")
    ] = None,
    reverse: Annotated[bool, typer.Option("--reverse", help="Highest or last first.")] = False,
) -> None:
    """List runs: when each began, its profile, last step, loss and state."""
    from llmtrain.cli.runs_filter import chosen_runs, parse_conditions, run_values
    from llmtrain.cli.runs_text import runs_parts
    from llmtrain.documents.runs import RunsList
    from llmtrain.errors import LlmtrainError, UsageError
    from llmtrain.train.run_directory.find import RUNS
    from llmtrain.train.run_directory.running import listed_runs

    conditions, found, unread = parse_conditions(where or []), [], 0
    if directory != RUNS and not directory.is_dir():
        raise UsageError(f"{directory} does not exist", hint="llmtrain runs list")
    for run in listed_runs(directory):
        try:
            summary = run_summary(run)
            found.append((summary, run_values(summary, run.read_record())))
        except LlmtrainError as error:
            output.warning(error.message)
            unread += 1
    rows = chosen_runs(found, conditions, sort, reverse=reverse)
    note = "" if rows else f"no runs under {directory}; start one with llmtrain train"
    if found and not rows:
        note = f"none of {len(found)} runs under {directory} meets {', '.join(where or [])}"
    elif unread and not rows:
        note = f"none of {unread} runs under {directory} can be read"
    output.answer(RunsList.of(runs=rows), runs_parts(rows, output.stdout.width), note)


def show(output: Output, run: options.Run) -> None:
    """Show one run: its result, its loss curves and every decision of its plan."""
    from llmtrain.cli.loss_plot import loss_plot
    from llmtrain.cli.runs_text import run_parts
    from llmtrain.documents.runs import RunsShow
    from llmtrain.train.run_directory.find import find_run
    from llmtrain.train.run_directory.history import read_history

    directory = find_run(run)
    record = directory.read_record()
    summary = run_summary(directory)
    plot = None if output.json else loss_plot(read_history(directory), output.stdout.width)
    output.answer(RunsShow.of(summary, record=record), run_parts(summary, record, plot))


def verify(output: Output, run: options.Run) -> int:
    """Check every file of a run's checkpoints against its hash; nothing is changed."""
    from llmtrain.documents.runs import Problem, RunsVerify
    from llmtrain.train.run_directory.verify import verify_run

    found = verify_run(run)
    damaged, unreadable = (
        [Problem.of(checkpoint=path, problem=why) for path, why in problems.items()]
        for problems in (found.damaged, found.unreadable)
    )
    document = RunsVerify.of(found, damaged=damaged, unreadable=unreadable)
    lines = [
        *(f"good        {path}" for path in document.good),
        *(f"damaged     {each.checkpoint}: {each.problem}" for each in damaged),
        *(f"unreadable  {each.checkpoint}: {each.problem}" for each in unreadable),
    ]
    newest = document.newest_good
    output.answer(document, lines, f"newest good: {newest}" if newest else "no checkpoint is good")
    return 1 if damaged or unreadable else 0


def run_summary(run: RunDirectory) -> Run:
    """Return the progress of a run, read from its files. Raises UsageError."""
    from llmtrain.documents.runs import Run
    from llmtrain.train.checkpoint.names import list_checkpoints
    from llmtrain.train.run_directory.running import is_in_training
    from llmtrain.train.run_directory.tags import read_tags

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
        tags=read_tags(run),
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
