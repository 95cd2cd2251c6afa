"""`llmtrain train`."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack, suppress
from datetime import datetime, timedelta
from datetime import time as time_of_day
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from llmtrain.cli.command import command
from llmtrain.cli.options import (
    AssumeOption,
    DataOption,
    DeviceOption,
    ForceCpuOption,
    JsonOption,
    NprocOption,
    ProfileOption,
    ProfileTextFieldOption,
    SetOption,
    WeightOption,
    assumed_machine,
    flag_settings,
    weighted_sources,
)
from llmtrain.cli.output import Output
from llmtrain.cli.streams import unread_output_lost
from llmtrain.cli.thresholds import (
    Threshold,
    at_most,
    positive,
    require_met,
    thresholds_document,
)
from llmtrain.errors import UsageError

if TYPE_CHECKING:
    from llmtrain.engine.request import Deadline, TrainRequest
    from llmtrain.train.distributed.signals import StopRequest
    from llmtrain.train.events import TrainResult


_UNTIL = "until="


def register(app: typer.Typer) -> None:
    """`train` is a command of `app`."""
    command(app, "train")(train)


def train(
    output: Output,
    profile: ProfileOption = None,
    data: DataOption = None,
    weight: WeightOption = None,
    device: DeviceOption = None,
    force_cpu: ForceCpuOption = False,
    time: Annotated[
        str | None, typer.Option("--time", help="Be done after 150s, 30m, 2h …, or until=07:30.")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Optimizer steps.")] = None,
    tokens: Annotated[
        str | None, typer.Option("--tokens", help="Tokens to train on, as in 50M.")
    ] = None,
    epochs: Annotated[
        float | None, typer.Option("--epochs", help="Times that the text is read.")
    ] = None,
    set_: SetOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The run directory; default: under runs/.")
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="auto|RUN", help="Go on where a run stopped."),
    ] = None,
    nproc: NprocOption = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of weights and order.")] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", help="A tokenizer's directory or file; default: train one."),
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
            help="Exit with 6 where the validation loss per token ends above this.",
        ),
    ] = None,
    assume: AssumeOption = None,
    json: JsonOption = False,
) -> int:
    """Train a model. With no profile, picks one for the machine and the time."""
    from llmtrain.train.distributed.signals import stop_on_signals

    positive("--max-loss", max_loss)
    if dry_run and max_loss is not None:
        raise UsageError(
            f"--max-loss {max_loss:g} is about a loss, and --dry-run trains nothing",
            hint="leave one of them out",
        )
    if assume is not None and not dry_run:
        raise UsageError("--assume: nothing can be trained there", hint="add --dry-run")
    flags = flag_settings(
        data_sources=weighted_sources(data, weight),
        data_text_field=text_field,
        data_tokenizer=tokenizer,
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
    """The next time that the clock shows what `--time until=` says. Raises UsageError."""
    if time is None or not _is_deadline(time):
        return None
    from llmtrain.engine.request import Deadline
    from llmtrain.train.distributed.signals import process_age_s

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
    from llmtrain.cli.explain import explained_document, show_assumed, show_explained
    from llmtrain.engine.explain import explain_run

    explained = explain_run(request)
    if as_json:
        output.document(explained_document(explained))
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
    from llmtrain.engine.train_run import (
        TrainSession,
        ranks_to_launch,
        resolved_run,
        run_training,
        train_resolved,
    )
    from llmtrain.train.distributed.launch import launch
    from llmtrain.train.distributed.signals import process_age_s, stop_with_parent
    from llmtrain.train.distributed.world import is_launched, world_from_environment

    if is_launched():
        stop_with_parent(stop)
    world, started_s = world_from_environment(), monotonic() - process_age_s()
    if not world.is_main:
        run_training(request, TrainSession(world, lambda event: None, stop, started_s))
        return 0  # a launcher would end rank 0 before its last message if another rank failed first
    with ExitStack() as stack:
        session = TrainSession(world, stack.enter_context(watching(output)), stop, started_s)
        resolved = stack.enter_context(resolved_run(request, session))
        ranks = ranks_to_launch(resolved) if "RANK" not in os.environ else 1
        if ranks > 1:
            stack.close()  # the ranks lock the directory
            return launch(ranks, sys.argv[1:], stop)
        result = train_resolved(resolved, session)
    is_over = result.stopped != "interrupted"
    thresholds = _thresholds(result, max_loss) if is_over else []
    if as_json:
        output.document({**train_document(result), **thresholds_document(thresholds)})
    _tell(output, result)
    if stop.has_given_up:
        _leave_at_once()
    hint = f"llmtrain runs show {result.run} tells how it went; all is saved, to go on from too"
    require_met(thresholds, hint=hint)
    return 0 if is_over else 75


def _thresholds(result: TrainResult, max_loss: float | None) -> list[Threshold]:
    """What is compared at the end of a run; an interrupted one has none yet."""
    if max_loss is None:
        return []
    return [
        at_most(
            "--max-loss",
            max_loss,
            result.val_loss,
            is_named=f"the validation loss after {result.steps} steps",
            unknown=f"no validation loss is known after {result.steps} steps",
        )
    ]


def _leave_at_once() -> NoReturn:
    """Ends this process with 75. Python's own end would wait for compilers in threads."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            child.kill()
    with unread_output_lost():
        sys.stdout.flush()
    os._exit(75)


def train_document(result: TrainResult) -> dict[str, Any]:
    """The `train` document."""
    return {
        "run": str(result.run),
        "checkpoint": str(result.checkpoint) if result.checkpoint else None,
        "steps": result.steps,
        "tokens": result.tokens,
        "seconds": result.seconds,
        "tokens_per_s": result.tokens_per_s,
        "train_loss": result.train_loss,
        "val_loss": result.val_loss,
        "val_bpb": result.val_bpb,
        "peak_memory_bytes": result.peak_memory_bytes,
        "energy_joules": result.energy_joules,
        "predicted": _predicted(result),
        "stopped": result.stopped,
    }


def _predicted(result: TrainResult) -> dict[str, Any]:
    """What was said before the run, where something was."""
    if result.predicted_peak_bytes is None:
        return {}
    return {
        "peak_memory_bytes": result.predicted_peak_bytes,
        "tokens_per_s": result.predicted_tokens_per_s,
        "seconds": result.predicted_seconds,
    }


def _tell(output: Output, result: TrainResult) -> None:
    """A closing summary with the next command to type."""
    from llmtrain.cli.render import summary_lines

    for line in summary_lines(result):
        output.note(line)
