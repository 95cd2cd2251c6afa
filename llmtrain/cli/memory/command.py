"""`llmtrain memory`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from llmtrain.cli import options
from llmtrain.cli.output import Output
from llmtrain.cli.thresholds import FAIL_OVER, positive_bytes
from llmtrain.errors import UsageError

_EVERY = "2s"


def memory(
    output: Output,
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN]",
            help="The processes of a run that is being trained; or a model directory, as "
            "--init-from takes it: what continuing and using it takes.",
        ),
    ] = None,
    pid: Annotated[
        int | None,
        typer.Option("--pid", min=1, help="Any process and its descendants."),
    ] = None,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Keep showing it, of the run that is being trained unless one is named: "
            "a live view, or off a terminal a JSON line per sample.",
        ),
    ] = False,
    every: Annotated[
        str | None, typer.Option("--every", help=f"The interval of --watch; default: {_EVERY}.")
    ] = None,
    profile: options.Profile = None,
    data: options.Data = None,
    device: options.Device = None,
    force_cpu: options.ForceCpu = False,
    nproc: options.Nproc = None,
    init_from: options.InitFrom = None,
    set_: options.Set = None,
    fail_over: Annotated[
        str | None,
        typer.Option(
            FAIL_OVER,
            metavar="SIZE",
            help="Exit with 6 if the predicted peak, or without a profile the memory in use now, "
            "is above 8GiB, 500MB …",
        ),
    ] = None,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="Train a few steps with the plan, and show their memory beside the predicted.",
        ),
    ] = False,
    assume: options.Assume = None,
) -> None:
    """Show memory in use now; with a profile, what training takes and whether it fits."""
    from llmtrain.cli.memory.now import show_memory_now
    from llmtrain.cli.memory.predict import show_memory_of_profile
    from llmtrain.cli.memory.watch import watch_memory

    limit_bytes = positive_bytes(FAIL_OVER, fail_over)
    if run is not None and init_from is None and _is_model(run):
        run, init_from = None, run
    planning = {
        "--profile": profile,
        "--init-from": init_from,
        "--data": data or None,
        "--device": device,
        "--force-cpu": force_cpu or None,
        "--nproc": nproc,
        "--set": set_,
        "--assume": assume,
        "--calibrate": calibrate or None,
    }
    now = {"RUN": run, "--pid": pid, "--watch": watch or None, "--every": every}
    _refuse_contradictions(now, planning, fail_over)
    if profile is not None or init_from is not None:
        request = options.request_of(
            profile,
            set_,
            assume,
            data_sources=data,
            model_init_from=init_from,
            device_kind=device,
            device_force_cpu=force_cpu,
            device_processes=nproc,
        )
        show_memory_of_profile(output, request, limit_bytes, calibrates=calibrate)
        return
    _refuse_without_profile(calibrate=calibrate, data=data, assume=assume)
    if watch:
        watch_memory(output, run, pid, every or _EVERY)
    else:
        show_memory_now(output, run, pid, limit_bytes)


def _refuse_contradictions(
    now: Mapping[str, object], planning: Mapping[str, object], fail_over: str | None
) -> None:
    """Raise UsageError for options that exclude each other."""
    _refuse_together(now, planning)
    for some, other in (("RUN", "--pid"), ("--watch", FAIL_OVER), ("--calibrate", "--assume")):
        values = {**now, **planning, FAIL_OVER: fail_over}
        _refuse_together({some: values[some]}, {other: values[other]})
    if now["--every"] is not None and now["--watch"] is None:
        raise UsageError(f"--every {now['--every']} needs --watch", hint="add --watch")


def _refuse_without_profile(*, calibrate: bool, data: list[str] | None, assume: str | None) -> None:
    """Raise UsageError for an option that says something of a profile."""
    uses = {
        "--calibrate measures a profile": ["cpu-tiny", "--calibrate"] if calibrate else None,
        "--data is text to train on by a profile": ["cpu-tiny", "--data", data[0]]
        if data
        else None,
        "--assume plans for a profile": ["gpu-small", "--assume", assume] if assume else None,
    }
    for use, example in uses.items():
        if example is not None:
            command = shlex.join(["llmtrain", "memory", "--profile", *example])
            raise UsageError(f"{use}, and none is named", hint=command)


def _is_model(run: str) -> bool:
    """Return whether `run` is a model directory, or one on the Hub; torch is not imported."""
    path = Path(run)
    files = ("state.json", "manifest.json", "run.yaml")
    is_ours = any((path / file).exists() for file in files)
    return run.lower().startswith("hf://") or (not is_ours and (path / "config.json").is_file())


def _refuse_together(some: Mapping[str, object], others: Mapping[str, object]) -> None:
    """Raise UsageError if options of both groups were given."""
    given = [next((n for n, v in group.items() if v is not None), "") for group in (some, others)]
    if all(given):
        raise UsageError(
            f"{given[0]} and {given[1]} cannot be combined", hint="leave one of them out"
        )
