"""`llmtrain memory`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

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
from llmtrain.cli.voice import Voice
from llmtrain.errors import UsageError

if TYPE_CHECKING:
    from llmtrain.engine.request import TrainRequest


def register(app: typer.Typer) -> None:
    """`memory` is a command of `app`."""
    command(app, "memory")(memory)


def memory(
    voice: Voice,
    profile: ProfileOption = None,
    device: DeviceOption = None,
    force_cpu: ForceCpuOption = False,
    nproc: NprocOption = None,
    set_: SetOption = None,
    assume: AssumeOption = None,
    json: JsonOption = False,
) -> int:
    """Memory in use now; with a profile, what training it will take and whether it fits."""
    if profile is not None:
        from llmtrain.engine.request import TrainRequest

        flags = flag_settings(
            device_kind=device, device_force_cpu=force_cpu, device_processes=nproc
        )
        assumed = assumed_machine(assume)
        request = TrainRequest(profile, assignments=set_ or [], flags=flags, assumed=assumed)
        return _predict(voice, request, as_json=json)
    if assume is not None:
        raise UsageError(
            "--assume plans for a profile, and none is named",
            hint=f"llmtrain memory --profile gpu-small --assume {assume}",
        )
    document = memory_now()
    if json:
        voice.document(document)
    else:
        _show_now(voice, document)
    return 0


def memory_now() -> dict[str, Any]:
    """The `memory` document: system, this process, accelerators."""
    from llmtrain.device.usage import (
        read_accelerator_memory,
        read_process_memory,
        read_system_memory,
    )

    system = read_system_memory()
    process = read_process_memory()
    shared = {"total_bytes": system.total_bytes, "available_bytes": system.available_bytes}
    used = process.resident_bytes
    return {
        "system": asdict(system),
        "process": {
            **shared,
            "used_bytes": used,
            "percent": round(100 * used / system.total_bytes, 1),
            **asdict(process),
        },
        "accelerators": [asdict(reading) for reading in read_accelerator_memory()],
    }


def _show_now(voice: Voice, document: dict[str, Any]) -> None:
    from llmtrain.units import format_bytes

    system, process = document["system"], document["process"]
    voice.result(
        f"system   {format_bytes(system['used_bytes'])} of {format_bytes(system['total_bytes'])} "
        f"used ({system['percent']}%), {format_bytes(system['available_bytes'])} available"
    )
    if system["limit_bytes"] is not None:
        voice.result(f"limit    {format_bytes(system['limit_bytes'])} for this control group")
    voice.result(
        f"process  {format_bytes(process['resident_bytes'])}, peak "
        f"{format_bytes(process['peak_resident_bytes'])} ({process['source']})"
    )
    for gpu in document["accelerators"]:
        free = f", {format_bytes(gpu['free_bytes'])} free" if gpu["free_bytes"] is not None else ""
        total = format_bytes(gpu["total_bytes"])
        voice.result(f"{gpu['kind']}:{gpu['index']}   {gpu['name']}, {total}{free}")


def _predict(voice: Voice, request: TrainRequest, *, as_json: bool) -> int:
    from llmtrain.cli.explain import (
        explained_document,
        show_assumed,
        show_decisions,
        show_prediction,
    )
    from llmtrain.engine.explaining import explain

    explained = explain(request)
    if as_json:
        # What is in use here and now is no part of a machine that is not here.
        now = memory_now() if request.assumed is None else {}
        voice.document(explained_document(explained) | now)
        return 0
    show_assumed(voice, request.assumed)
    show_prediction(voice, explained)
    voice.result("")
    show_decisions(voice, explained)
    return 0
