"""`llmtrain memory` without a profile: memory in use now."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from llmtrain.cli.output import Output
from llmtrain.cli.thresholds import (
    FAIL_OVER,
    Threshold,
    bytes_at_most,
    require_met,
    thresholds_document,
)
from llmtrain.errors import UsageError

if TYPE_CHECKING:
    from llmtrain.train.run_directory.directory import RunDirectory


@dataclass(frozen=True)
class Watched:
    """A process with all its descendants, and the run that they train, where that is known."""

    pid: int | None = None  # None: this process
    run: RunDirectory | None = None


def show_memory_now(
    output: Output, run: str | None, pid: int | None, limit_bytes: int | None, *, as_json: bool
) -> int:
    target = asked_for(run, pid)
    try:
        document = memory_now(target)
    except ProcessLookupError:
        raise no_such_process(target) from None
    thresholds = [_in_use(document, limit_bytes)] if limit_bytes is not None else []
    if as_json:
        output.document(document | thresholds_document(thresholds))
    else:
        for line in memory_lines(document):
            output.result(line)
    require_met(thresholds, hint="llmtrain memory --watch shows how it changes")
    return 0


def asked_for(run: str | None, pid: int | None) -> Watched | None:
    """Whose memory is to be shown, if a run or a process is named. Raises UsageError."""
    if run is None:
        return None if pid is None else Watched(pid)
    from llmtrain.train.run_directory.running import (
        run_in_training,  # imports torch, which takes memory
    )

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
    from llmtrain.machine import gpu_memory, memory_usage

    pid = None if target is None else target.pid
    system, process = memory_usage.read_system_memory(), memory_usage.read_process_memory(pid)
    group = memory_usage.read_group_use(pid)
    gpus = (
        gpu_memory.read_accelerator_memory()
        if target is None
        else gpu_memory.read_accelerators_from_outside()
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
