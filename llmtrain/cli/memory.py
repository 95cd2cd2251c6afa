"""`llmtrain memory`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmtrain.cli.command import command
from llmtrain.cli.options import (
    AssumeOption,
    DeviceOption,
    ForceCpuOption,
    JsonOption,
    NprocOption,
    ProfileOption,
    SetOption,
    assumed_machine,
    flag_settings,
)
from llmtrain.cli.thresholds import (
    FAIL_OVER,
    Threshold,
    bytes_at_most,
    positive_bytes,
    require_met,
    thresholds_document,
)
from llmtrain.cli.voice import Voice
from llmtrain.errors import UsageError

if TYPE_CHECKING:
    from llmtrain.train.rundir import RunDirectory

_EVERY = "2s"


@dataclass(frozen=True)
class Watched:
    """A process with all its descendants, and the run that they train, where that is known."""

    pid: int | None = None  # None: this process
    run: RunDirectory | None = None


def register(app: typer.Typer) -> None:
    """`memory` is a command of `app`."""
    command(app, "memory")(memory)


def memory(
    voice: Voice,
    run: Annotated[
        str | None,
        typer.Argument(metavar="[RUN]", help="A run that is being trained: its processes."),
    ] = None,
    pid: Annotated[
        int | None,
        typer.Option("--pid", min=1, help="This process and its descendants, whatever it is."),
    ] = None,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Look again and again, at the run that is being trained where none is named: "
            "a live view, or a JSON line a look off a terminal.",
        ),
    ] = False,
    every: Annotated[
        str | None, typer.Option("--every", help=f"How often --watch looks; default: {_EVERY}.")
    ] = None,
    profile: ProfileOption = None,
    device: DeviceOption = None,
    force_cpu: ForceCpuOption = False,
    nproc: NprocOption = None,
    set_: SetOption = None,
    fail_over: Annotated[
        str | None,
        typer.Option(
            FAIL_OVER,
            metavar="SIZE",
            help="Exit with 6 where the predicted peak, or without a profile what is in use now, "
            "is above 8GiB, 500MB …",
        ),
    ] = None,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate", help="Train a few steps as planned, and set what they took beside it."
        ),
    ] = False,
    assume: AssumeOption = None,
    json: JsonOption = False,
) -> int:
    """Memory in use now; with a profile, what training it will take and whether it fits."""
    limit_bytes = positive_bytes(FAIL_OVER, fail_over)
    planning = {
        "--profile": profile,
        "--device": device,
        "--force-cpu": force_cpu or None,
        "--nproc": nproc,
        "--set": set_,
        "--assume": assume,
        "--calibrate": calibrate or None,
    }
    now = {"RUN": run, "--pid": pid, "--watch": watch or None, "--every": every}
    _refuse_together(now, planning)
    _refuse_together({"RUN": run}, {"--pid": pid})
    _refuse_together({"--watch": watch or None}, {FAIL_OVER: fail_over})
    _refuse_together({"--calibrate": calibrate or None}, {"--assume": assume})
    if every is not None and not watch:
        raise UsageError(f"--every {every} is for --watch", hint="add --watch")
    if profile is not None:
        from llmtrain.cli.memory_of_profile import show_memory_of_profile
        from llmtrain.engine.request import TrainRequest

        flags = flag_settings(
            device_kind=device, device_force_cpu=force_cpu, device_processes=nproc
        )
        assumed = assumed_machine(assume)
        request = TrainRequest(profile, assignments=set_ or [], flags=flags, assumed=assumed)
        return show_memory_of_profile(
            voice, request, limit_bytes, calibrates=calibrate, as_json=json
        )
    if calibrate:
        raise UsageError(
            "--calibrate measures a profile, and none is named",
            hint="llmtrain memory --profile cpu-tiny --calibrate",
        )
    if assume is not None:
        raise UsageError(
            "--assume plans for a profile, and none is named",
            hint=f"llmtrain memory --profile gpu-small --assume {assume}",
        )
    if watch:
        from llmtrain.cli.live_memory import watch_memory

        return watch_memory(voice, run, pid, every or _EVERY, as_lines=json)
    return _now(voice, run, pid, limit_bytes, as_json=json)


def _refuse_together(some: dict[str, Any], others: dict[str, Any]) -> None:
    """Of two groups of options only one was given. Raises UsageError."""
    given = [next((n for n, v in group.items() if v is not None), "") for group in (some, others)]
    if all(given):
        raise UsageError(f"{given[0]} and {given[1]} do not go together", hint="leave one out")


def _now(
    voice: Voice, run: str | None, pid: int | None, limit_bytes: int | None, *, as_json: bool
) -> int:
    target = asked_for(run, pid)
    try:
        document = memory_now(target)
    except ProcessLookupError:
        raise no_such_process(target) from None
    thresholds = [_in_use(document, limit_bytes)] if limit_bytes is not None else []
    if as_json:
        voice.document(document | thresholds_document(thresholds))
    else:
        for line in memory_lines(document):
            voice.result(line)
    require_met(thresholds, hint="llmtrain memory --watch shows how it changes")
    return 0


def asked_for(run: str | None, pid: int | None) -> Watched | None:
    """Whose memory is to be shown, if a run or a process is named. Raises UsageError."""
    if run is None:
        return None if pid is None else Watched(pid)
    from llmtrain.train.watched import run_in_training  # imports torch, which takes memory

    directory, training_pid = run_in_training(run)
    return Watched(training_pid, directory)


def no_such_process(target: Watched | None) -> UsageError:
    """What to tell where there is nothing to look at."""
    pid = target.pid if target is not None else None
    return UsageError(f"--pid {pid}: no such process is running", hint="llmtrain runs list")


def _in_use(document: dict[str, Any], limit_bytes: int) -> Threshold:
    """What is compared with --fail-over: the processes asked for, or else all that is taken."""
    part, name = "system", "memory in use on this machine"
    if "pid" in document["process"]:
        part, name = "process", f"memory in use by process {document['process']['pid']}"
    elif document["cgroup"] is not None:
        part, name = "cgroup", "memory in use in this control group"
    used_bytes = document[part]["used_bytes"]
    return bytes_at_most(FAIL_OVER, limit_bytes, used_bytes, is_named=name)


def memory_now(target: Watched | None = None) -> dict[str, Any]:
    """The `memory` document: system, control group, processes, accelerators.

    The processes are this one's, and the accelerators as this one has them, unless there is a
    `target`. Raises ProcessLookupError where that has ended.
    """
    from llmtrain.device import usage

    pid = None if target is None else target.pid
    system, process = usage.read_system_memory(), usage.read_process_memory(pid)
    group = usage.read_group_use(pid)
    gpus = (
        usage.read_accelerator_memory()
        if target is None
        else usage.read_accelerators_from_outside()
    )
    used = process.resident_bytes
    document: dict[str, Any] = {
        "system": asdict(system),
        "cgroup": None if group is None else asdict(group),
        "process": {
            **({} if pid is None else {"pid": pid}),
            "total_bytes": system.total_bytes,
            "available_bytes": system.available_bytes,
            "used_bytes": used,
            "percent": round(100 * used / system.total_bytes, 1),
            **asdict(process),
        },
        "accelerators": [
            asdict(gpu) | {"used_bytes": gpu.used_bytes, "percent": gpu.percent} for gpu in gpus
        ],
    }
    if target is not None and target.run is not None:
        document["run"] = {"path": str(target.run.path), "logged": target.run.last_step_line()}
    return document


def memory_lines(document: dict[str, Any]) -> list[str]:
    """The document in words, a line for each that has memory."""
    process, run = document["process"], document.get("run")
    lines = [f"system   {_use(document['system'])}"]
    if document["cgroup"] is not None:
        lines.append(f"cgroup   {_use(document['cgroup'])}")
    lines.append(f"process  {_process(process)}")
    for gpu in document["accelerators"]:
        held = _held({name: gpu[f"{name}_bytes"] for name in ("allocated", "reserved")})
        peak = _held({"peak": gpu["peak_reserved_bytes"]})
        lines.append(f"{gpu['kind']}:{gpu['index']}   {gpu['name']}: {_use(gpu)}{held}{peak}")
    if run is not None:
        lines.append(f"run      {_run(run)}")
    return lines


def _use(values: dict[str, Any]) -> str:
    """`5.1 GiB of 15.6 GiB used (33%), 10.5 GiB available`."""
    from llmtrain.units import format_bytes

    total = format_bytes(values["total_bytes"])
    if values["available_bytes"] is None:
        return f"of {total}"
    used, available = (format_bytes(values[f"{name}_bytes"]) for name in ("used", "available"))
    return f"{used} of {total} used ({values['percent']:g}%), {available} available"


def _process(values: dict[str, Any]) -> str:
    from llmtrain.units import format_bytes

    of = f"{values['pid']}: " if "pid" in values else ""
    others = f" in {values['processes']} processes" if values["processes"] > 1 else ""
    held, peak = format_bytes(values["used_bytes"]), format_bytes(values["peak_resident_bytes"])
    return f"{of}{held}{others} ({values['percent']:g}%), peak {peak} ({values['source']})"


def _held(sizes: dict[str, int | None]) -> str:
    from llmtrain.units import format_bytes

    known = {name: size for name, size in sizes.items() if size is not None}
    return "".join(f", {name} {format_bytes(size)}" for name, size in known.items())


def _run(run: dict[str, Any]) -> str:
    """The run's own words, which alone know what its allocator holds on a GPU."""
    logged = run["logged"] or {}
    names = {"allocated": "allocated_bytes", "reserved": "bytes", "peak": "peak_bytes"}
    sizes = {name: logged.get(f"accelerator_{key}") for name, key in names.items()}
    held = _held({n: size if type(size) is int else None for n, size in sizes.items()})
    return f"{run['path']}, step {logged.get('step', 0)}{held}"
