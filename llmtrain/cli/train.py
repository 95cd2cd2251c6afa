"""`llmtrain train`."""

from __future__ import annotations

import os
import shlex
import sys
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from datetime import time as time_of_day
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from llmtrain.cli import completion, options
from llmtrain.cli.output import Output
from llmtrain.cli.streams import unread_output_lost
from llmtrain.cli.thresholds import Threshold, at_most, positive, require_met
from llmtrain.errors import UsageError

if TYPE_CHECKING:
    from llmtrain.documents.runs import Train
    from llmtrain.engine.request import Deadline, TrainRequest
    from llmtrain.train.events import TrainResult
    from llmtrain.train.signals import StopRequest

_UNTIL = "until="


def train(
    output: Output,
    profile: options.Profile = None,
    data: options.Data = None,
    weight: options.Weight = None,
    device: options.Device = None,
    force_cpu: options.ForceCpu = False,
    time: Annotated[
        str | None, typer.Option("--time", help="Finish after 150s, 30m, 2h …, or by until=07:30.")
    ] = None,
    steps: Annotated[int | None, options.whole_number("--steps", "Optimizer steps.")] = None,
    tokens: Annotated[
        str | None, typer.Option("--tokens", help="Tokens to train on, as in 50M.")
    ] = None,
    epochs: Annotated[float | None, typer.Option("--epochs", help="Passes over the text.")] = None,
    set_: options.Set = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The run directory; default: under runs/.")
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            "--resume",
            metavar="auto|RUN",
            help="Continue a run from its last checkpoint.",
            autocompletion=completion.resumable_names,
        ),
    ] = None,
    nproc: options.Nproc = None,
    seed: Annotated[
        int | None, options.whole_number("--seed", "Seed of the weights and the data order.")
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", help="A tokenizer's directory or file; default: train one."),
    ] = None,
    init_from: options.InitFrom = None,
    reserve: Annotated[
        int | None,
        options.whole_number("--reserve", "Control pieces to add to the tokenizer.", 0),
    ] = None,
    text_field: options.ProfileTextField = None,
    log_to: Annotated[
        list[str] | None,
        typer.Option(
            "--log-to",
            metavar="tensorboard|trackio|wandb|mlflow",
            help="Send the metrics to a tracker too. Repeatable.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan and its cost; train nothing.")
    ] = False,
    max_loss: Annotated[
        float | None,
        typer.Option(
            "--max-loss",
            metavar="NATS",
            help="Exit with 6 if the final validation loss per token is above this.",
        ),
    ] = None,
    assume: options.Assume = None,
) -> int:
    """Train a model. Without --profile, one is chosen for the machine and the time."""
    from llmtrain.train.signals import stop_on_signals

    positive("--max-loss", max_loss)
    if dry_run and max_loss is not None:
        raise UsageError(
            f"--max-loss {max_loss:g} limits a loss, and --dry-run trains nothing",
            hint="leave one of them out",
        )
    if assume is not None and not dry_run:
        raise UsageError("--assume: an assumed machine cannot train", hint="add --dry-run")
    with stop_on_signals() as stop:  # before torch is imported, which takes seconds
        from llmtrain.machine.startup import prepare_for_torch

        prepare_for_torch()
        request = replace(
            options.request_of(
                profile,
                set_,
                assume,
                data_sources=options.weighted_sources(data, weight),
                data_text_field=text_field,
                data_tokenizer=tokenizer,
                data_tokenizer_reserve=reserve,
                model_init_from=init_from,
                train_steps=steps,
                train_tokens=tokens,
                train_epochs=epochs,
                train_time=None if is_deadline(time) else time,
                train_seed=seed,
                device_kind=device,
                device_force_cpu=force_cpu,
                device_processes=nproc,
                log_to=log_to,
            ),
            out=out,
            resume=resume,
            deadline=deadline_of(time),
            command=["llmtrain", *sys.argv[1:]],
        )
        if dry_run:
            stop.check()
            show_dry_run(output, request)
            return 0
        return train_request(output, request, stop, max_loss)


def is_deadline(time: str | None) -> bool:
    return time is not None and time.startswith(_UNTIL)


def deadline_of(time: str | None) -> Deadline | None:
    """Return the next time of day that `--time until=` names. Raises UsageError."""
    if time is None or not is_deadline(time):
        return None
    from llmtrain.engine.request import Deadline
    from llmtrain.machine.process_age import process_age_s

    now = datetime.now().astimezone()
    try:
        clock = time_of_day.fromisoformat(time.removeprefix(_UNTIL))
    except ValueError:
        raise UsageError(
            f"--time {time}: not a time of day", hint="write --time until=07:30, or --time 30m"
        ) from None
    # Combined without a zone and then placed in it: clocks may change in the night between.
    at = datetime.combine(now.date(), clock.replace(tzinfo=None)).astimezone()
    if at <= now:
        tomorrow = now.date() + timedelta(days=1)
        at = datetime.combine(tomorrow, clock.replace(tzinfo=None)).astimezone()
    return Deadline(at.timestamp(), now.timestamp() - process_age_s())


def show_dry_run(output: Output, request: TrainRequest) -> None:
    from llmtrain.cli.plan_tables import assumed_parts, explained_parts
    from llmtrain.documents.plans import TrainDryRun
    from llmtrain.engine.explain import explain_run
    from llmtrain.engine.text_notes import unusable_text

    explained = explain_run(request)
    if explained.assumed is None:  # another machine has other files
        for text in unusable_text(explained.loaded):
            output.warning(text)
    parts = (*assumed_parts(explained.assumed), *explained_parts(explained))
    output.answer(TrainDryRun.of_explained(explained), parts)


def train_request(
    output: Output, request: TrainRequest, stop: StopRequest, max_loss: float | None
) -> int:
    from llmtrain.cli.progress import watching
    from llmtrain.cli.train_summary import next_commands, summary_lines
    from llmtrain.engine.text_notes import text_notes
    from llmtrain.engine.train_run import (
        TrainSession,
        ranks_to_launch,
        resolved_run,
        run_training,
        train_resolved,
    )
    from llmtrain.machine.process_age import process_age_s
    from llmtrain.train.distributed.world import is_launched, world_from_environment
    from llmtrain.train.signals import stop_with_parent

    if is_launched():
        stop_with_parent(stop)
    world, started_s = world_from_environment(), monotonic() - process_age_s()
    if not world.is_main:
        run_training(request, TrainSession(world, lambda event: None, stop, started_s))
        return 0  # an error here would make the launcher end rank 0 before it reports
    with ExitStack() as stack:
        session = TrainSession(world, stack.enter_context(watching(output)), stop, started_s)
        resolved = stack.enter_context(resolved_run(request, session))
        if not resolved.is_finished and not is_launched():
            for text in text_notes(resolved.profile.loaded, Path()):
                output.note(text)
        ranks = ranks_to_launch(resolved, session) if "RANK" not in os.environ else 1
        if ranks > 1:
            from llmtrain.train.distributed.launch import launch

            stack.close()  # the ranks lock the directory
            return launch(ranks, sys.argv[1:], stop)
        result = train_resolved(resolved, session)
    is_over = result.stopped != "interrupted"
    name = f"the validation loss after {result.steps} steps"
    limit = max_loss if is_over else None
    thresholds = at_most(
        "--max-loss", limit, result.val_loss, is_named=name, unknown=f"{name} is unknown"
    )
    if output.json:
        output.document(_document(result, thresholds))
    commands = next_commands(result)
    for line in summary_lines(result):
        output.note(line, in_one_piece=line in commands)
    if stop.has_abandoned_work:
        _leave_at_once()
    run = shlex.quote(str(result.run))
    hint = f"llmtrain runs show {run} shows the run, which is saved and can be resumed"
    require_met(thresholds, hint=hint)
    return 0 if is_over else 75


def _document(result: TrainResult, thresholds: list[Threshold]) -> Train:
    from llmtrain.documents.base import present
    from llmtrain.documents.runs import Train

    predicted = {
        "peak_memory_bytes": result.predicted_peak_bytes,
        "tokens_per_s": result.predicted_tokens_per_s,
        "seconds": result.predicted_seconds,
    }
    was_trained = result.predicted_peak_bytes is not None
    more = present(thresholds=thresholds)
    return Train.of(result, predicted=predicted if was_trained else {}, **more)


def _leave_at_once() -> NoReturn:
    """End this process with 75. Python's own exit would wait for compilers in threads."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            child.kill()
    with unread_output_lost():
        sys.stdout.flush()
    os._exit(75)
