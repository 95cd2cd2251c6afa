"""Train what `train` and `finetune` ask for, and show the result; or show the plan alone."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from datetime import time as time_of_day
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, NoReturn

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


@dataclass(frozen=True, slots=True)
class RunFlags:
    """The options of a training that are not settings of its profile."""

    out: Path | None
    resume: str | None
    time: str | None
    dry_run: bool
    max_loss: float | None


def train_or_show(output: Output, request: Callable[[], TrainRequest], flags: RunFlags) -> int:
    """Train what `request` returns, or show its plan; return the exit code. Raises LlmtrainError.

    The request is made here because it imports modules, while signals are already handled.
    """
    from llmtrain.train.signals import stop_on_signals

    positive("--max-loss", flags.max_loss)
    if flags.dry_run and flags.max_loss is not None:
        raise UsageError(
            f"--max-loss {flags.max_loss:g} limits a loss, and --dry-run trains nothing",
            hint="leave one of them out",
        )
    with stop_on_signals() as stop:  # before torch is imported, which takes seconds
        from llmtrain.machine.startup import prepare_for_torch

        prepare_for_torch()
        complete = replace(
            request(),
            out=flags.out,
            resume=flags.resume,
            deadline=deadline_of(flags.time),
            command=["llmtrain", *sys.argv[1:]],
        )
        if flags.dry_run:
            stop.check()
            show_dry_run(output, complete)
            return 0
        return train_request(output, complete, stop, flags.max_loss)


def duration_of(time: str | None) -> str | None:
    """Return the value of `--time` for a profile; None if it is a time of day, or not given."""
    return None if time is None or time.startswith(_UNTIL) else time


def deadline_of(time: str | None) -> Deadline | None:
    """Return the next time of day that `--time until=` names. Raises UsageError."""
    if time is None or not time.startswith(_UNTIL):
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
    """Show the plan of the request and its cost. Raises LlmtrainError."""
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
    """Train in this process, or launch its ranks; return the exit code. Raises LlmtrainError."""
    from llmtrain.cli.progress import watching
    from llmtrain.engine.text_notes import text_notes
    from llmtrain.engine.train_data import RunText
    from llmtrain.engine.train_run import (
        ranks_to_launch,
        resolved_run,
        run_training,
        train_resolved,
    )
    from llmtrain.engine.train_session import TrainSession
    from llmtrain.machine.process_age import process_age_s
    from llmtrain.train.distributed.world import is_launched, world_from_environment
    from llmtrain.train.signals import stop_with_parent

    if is_launched():
        stop_with_parent(stop)
    world, started_s = world_from_environment(), monotonic() - process_age_s()
    if not world.is_main:
        result = run_training(request, TrainSession(world, lambda event: None, stop, started_s))
        # A launcher would end rank 0 before it reports; a cluster starts each machine's ranks again
        # by their own code.
        return 75 if result.stopped == "interrupted" and not is_launched() else 0
    with ExitStack() as stack:
        session = TrainSession(world, stack.enter_context(watching(output)), stop, started_s)
        resolved = stack.enter_context(resolved_run(request, session))
        text = RunText(resolved, session)
        if not resolved.is_finished and not is_launched():
            for line in text_notes(resolved.profile.loaded, lambda: text.corpus, Path()):
                output.note(line)
        ranks = ranks_to_launch(resolved, session, text) if "RANK" not in os.environ else 1
        if ranks > 1:
            from llmtrain.train.distributed.launch import launch

            stack.close()  # the ranks lock the directory
            return launch(ranks, sys.argv[1:], stop)
        result = train_resolved(resolved, session, text)
    return show_result(output, result, stop, max_loss)


def show_result(
    output: Output, result: TrainResult, stop: StopRequest, max_loss: float | None
) -> int:
    """Show what a training ended with; return the exit code. Raises ThresholdError."""
    from llmtrain.cli.train_summary import next_commands, summary_lines

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
