"""`llmtrain sweep`."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmtrain.cli import options
from llmtrain.cli.output import Output, escape_control
from llmtrain.units import counted, format_count, format_duration

if TYPE_CHECKING:
    from llmtrain.cli.output import Part
    from llmtrain.documents.sweep import Sweep, SweepTrial
    from llmtrain.engine.sweep.plan import SweepPlan
    from llmtrain.engine.sweep.results import TrialResult


def sweep(
    output: Output,
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="A YAML file: what is varied.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="The sweep's directory; default: sweeps/NAME.")
    ] = None,
    time: Annotated[str | None, typer.Option("--time", help="Of each trial, as in 5m.")] = None,
    workers: Annotated[
        int, options.whole_number("--workers", "Trials at once; they share the cores.", 1)
    ] = 1,
) -> int:
    """Train every trial of a plan and rank them; the same command continues after any kill."""
    from llmtrain.documents.sweep import Sweep, SweepTrial
    from llmtrain.engine.sweep.plan import read_plan, trials_of
    from llmtrain.engine.sweep.sweep import SweepRequest, run_sweep
    from llmtrain.train.signals import stop_on_signals

    found = read_plan(plan)
    directory = out or Path("sweeps") / found.name
    settings = {"train.time": time} if time is not None else {}
    count = len(trials_of(found))
    output.note(f"{counted(count, 'trial')} in {directory}")

    def announce(result: TrialResult) -> None:
        output.note(_line(SweepTrial.of(result)))

    with stop_on_signals() as stop:
        request = SweepRequest(found, directory, workers, settings)
        results = [SweepTrial.of(each) for each in run_sweep(request, announce, stop.check)]
    best = results[0] if results and results[0].outcome == "done" else None
    command = None if best is None else _next_command(found, best, time)
    document = Sweep.of(sweep=directory, trials=results, best=best, command=command)
    output.answer(document, _parts(document, output.stdout.width))
    return 0 if best is not None else 1


def _next_command(plan: SweepPlan, best: SweepTrial, time: str | None) -> str:
    """Return the command that trains the best setting again, with another seed to be sure."""
    from llmtrain.engine.sweep.plan import assignments

    words = ["llmtrain", "train"]
    words += ["--profile", plan.profile] if plan.profile is not None else []
    words += [word for spec in plan.data for word in ("--data", spec)]
    settings = {k: v for k, v in {**plan.settings, **best.settings}.items() if k != "train.seed"}
    words += [word for text in assignments(settings) for word in ("--set", text)]
    words += ["--time", time] if time is not None else []
    return shlex.join([*words, "--seed", "1"])


def _line(trial: SweepTrial) -> str:
    bits = "-" if trial.val_bpb is None else f"{trial.val_bpb:.4f}"
    reason = f" ({trial.reason})" if trial.reason else ""
    return f"trial {trial.trial}: {trial.outcome}, {bits} bits per byte, {_settings(trial)}{reason}"


def _settings(trial: SweepTrial) -> str:
    return ", ".join(f"{key}={_value(value)}" for key, value in trial.settings.items())


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _parts(document: Sweep, columns: int) -> Iterator[Part]:
    """Yield the ranking, a plot of the loss against the only number varied, what is next."""
    from rich.table import Table
    from rich.text import Text

    if not document.trials:
        return
    keys = list(document.trials[0].settings)
    table = Table(box=None, pad_edge=False)
    for name in ("trial", "bits/byte", "tokens", "time", *keys, "outcome"):
        is_number = name in ("bits/byte", "tokens", "time")
        table.add_column(Text(escape_control(name)), justify="right" if is_number else "left")
    for trial in document.trials:
        cells = (
            str(trial.trial),
            "-" if trial.val_bpb is None else f"{trial.val_bpb:.4f}",
            format_count(trial.tokens),
            format_duration(trial.seconds),
            *(_value(trial.settings.get(key)) for key in keys),
            trial.outcome,
        )
        table.add_row(*(Text(escape_control(cell)) for cell in cells))
    yield table
    plot = _plot(document.trials, columns)
    if plot is not None:
        yield ""
        yield plot
    if document.command is not None:
        yield ""
        yield f"next: {document.command}"
        yield f"      llmtrain runs report {document.sweep}/trial-*"


def _plot(trials: Sequence[SweepTrial], columns: int) -> Part | None:
    """Return the loss of trials that are done against the only setting with several numbers."""
    from llmtrain.cli.loss_plot import scatter_plot

    done = [each for each in trials if each.outcome == "done" and each.val_bpb is not None]
    numeric = [
        key
        for key in (done[0].settings if done else ())
        if all(_is_number(each.settings.get(key)) for each in done)
        and len({each.settings[key] for each in done}) > 2
        and key != "train.seed"
    ]
    if len(numeric) != 1:
        return None
    key = numeric[0]
    values = [float(each.settings[key]) for each in done]
    is_log = min(values) > 0 and max(values) >= 8 * min(values)
    xs = [math.log10(value) if is_log else value for value in values]
    bits = [each.val_bpb for each in done if each.val_bpb is not None]
    title = f"bits per byte against {key}{', logarithmic' if is_log else ''}"
    return scatter_plot(xs, bits, columns, title, 10.0 if is_log else None)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
