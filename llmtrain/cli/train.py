"""`llmtrain train`."""

from __future__ import annotations

import os
import shlex
import sys
from contextlib import ExitStack, suppress
from datetime import datetime, timedelta
from datetime import time as time_of_day
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from llmtrain.cli import completion
from llmtrain.cli.command import command
from llmtrain.cli.options import (
    AssumeOption,
    DataOption,
    DeviceOption,
    ForceCpuOption,
    InitFromOption,
    JsonOption,
    NprocOption,
    ProfileOption,
    ProfileTextFieldOption,
    SetOption,
    WeightOption,
    assumed_machine,
    flag_settings,
    weighted_sources,
    whole_number,
)
from llmtrain.cli.output import Output
from llmtrain.cli.streams import unread_output_lost
from llmtrain.cli.thresholds import (
    Threshold,
    at_most,
    positive,
    require_met,
)
from llmtrain.errors import UsageError

if TYPE_CHECKING:
    from llmtrain.engine.request import Deadline, TrainRequest
    from llmtrain.train.events import TrainResult
    from llmtrain.train.signals import StopRequest


_UNTIL = "until="


def register(app: typer.Typer) -> None:
    """Add the command `train` to `app`."""
    command(app, "train", "llmtrain train --data notes/ --time 30m")(train)


def train(
    output: Output,
    profile: ProfileOption = None,
    data: DataOption = None,
    weight: WeightOption = None,
    device: DeviceOption = None,
    force_cpu: ForceCpuOption = False,
    time: Annotated[
        str | None, typer.Option("--time", help="Finish after 150s, 30m, 2h …, or by until=07:30.")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option("--steps", metavar="COUNT", parser=whole_number, help="Optimizer steps."),
    ] = None,
    tokens: Annotated[
        str | None, typer.Option("--tokens", help="Tokens to train on, as in 50M.")
    ] = None,
    epochs: Annotated[float | None, typer.Option("--epochs", help="Passes over the text.")] = None,
    set_: SetOption = None,
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
    nproc: NprocOption = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Seed of the weights and the data order.")
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", help="A tokenizer's directory or file; default: train one."),
    ] = None,
    init_from: InitFromOption = None,
    reserve: Annotated[
        int | None,
        typer.Option("--reserve", min=0, help="Control pieces to add to the tokenizer."),
    ] = None,
    text_field: ProfileTextFieldOption = None,
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
    assume: AssumeOption = None,
    json: JsonOption = False,
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
    flags = flag_settings(
        data_sources=weighted_sources(data, weight),
        data_text_field=text_field,
        data_tokenizer=tokenizer,
        data_tokenizer_reserve=reserve,
        model_init_from=init_from,
        train_steps=steps,
        train_tokens=tokens,
        train_epochs=epochs,
        train_time=None if _is_deadline(time) else time,
        train_seed=seed,
        device_kind=device,
        device_force_cpu=force_cpu,
        device_processes=nproc,
    )
    with stop_on_signals() as stop:  # before torch is imported, which takes seconds
        from llmtrain.machine.startup import prepare_for_torch

        prepare_for_torch()
        from llmtrain.engine.request import TrainRequest

        request = TrainRequest(
            profile=profile,
            assignments=set_ or [],
            flags=flags,
            out=out,
            resume=resume,
            deadline=_deadline(time),
            command=["llmtrain", *sys.argv[1:]],
            assumed=assumed_machine(assume),
        )
        if dry_run:
            stop.check()
            return _dry_run(output, request, as_json=json)
        return _train(output, request, stop, max_loss, as_json=json)


def _is_deadline(time: str | None) -> bool:
    return time is not None and time.startswith(_UNTIL)


def _deadline(time: str | None) -> Deadline | None:
    """Return the next time of day that `--time until=` names. Raises UsageError."""
    if time is None or not _is_deadline(time):
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


def _dry_run(output: Output, request: TrainRequest, *, as_json: bool) -> int:
    from llmtrain.cli.plan_tables import show_assumed, show_explained
    from llmtrain.documents.plans import TrainDryRun
    from llmtrain.engine.explain import explain_run

    explained = explain_run(request)
    if as_json:
        output.document(TrainDryRun.of_explained(explained))
    else:
        show_assumed(output, request.assumed)
        show_explained(output, explained)
    return 0


def _train(
    output: Output,
    request: TrainRequest,
    stop: StopRequest,
    max_loss: float | None,
    *,
    as_json: bool,
) -> int:
    from llmtrain.cli.progress import watching
    from llmtrain.cli.train_summary import summary_lines
    from llmtrain.documents.train import Train
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
        ranks = ranks_to_launch(resolved) if "RANK" not in os.environ else 1
        if ranks > 1:
            from llmtrain.train.distributed.launch import launch

            stack.close()  # the ranks lock the directory
            return launch(ranks, sys.argv[1:], stop)
        result = train_resolved(resolved, session)
    is_over = result.stopped != "interrupted"
    thresholds = _thresholds(result, max_loss) if is_over else []
    if as_json:
        output.document(Train.of_result(result, thresholds))
    for line in summary_lines(result):
        output.note(line)
    if stop.has_abandoned_work:
        _leave_at_once()
    run = shlex.quote(str(result.run))
    hint = f"llmtrain runs show {run} shows the run, which is saved and can be resumed"
    require_met(thresholds, hint=hint)
    return 0 if is_over else 75


def _thresholds(result: TrainResult, max_loss: float | None) -> list[Threshold]:
    """Return the threshold of --max-loss, if it is set."""
    if max_loss is None:
        return []
    return [
        at_most(
            "--max-loss",
            max_loss,
            result.val_loss,
            is_named=f"the validation loss after {result.steps} steps",
            unknown=f"the validation loss after {result.steps} steps is unknown",
        )
    ]


def _leave_at_once() -> NoReturn:
    """End this process with 75. Python's own exit would wait for compilers in threads."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            child.kill()
    with unread_output_lost():
        sys.stdout.flush()
    os._exit(75)
