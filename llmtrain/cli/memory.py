"""`llmtrain memory`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import typer

from llmtrain.cli.command import command
from llmtrain.cli.options import (
    DeviceOption,
    ForceCpuOption,
    JsonOption,
    NprocOption,
    ProfileOption,
    SetOption,
    flag_settings,
)
from llmtrain.cli.voice import Voice


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
    json: JsonOption = False,
) -> int:
    """Memory in use now; with a profile, what training it will take and whether it fits."""
    if profile is not None:
        return _predict(voice, profile, device, force_cpu, nproc, set_ or [], as_json=json)
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


def _predict(
    voice: Voice,
    profile: str,
    device: Any,
    force_cpu: bool,
    nproc: int | None,
    assignments: list[str],
    *,
    as_json: bool,
) -> int:
    from llmtrain.cli.render import prediction_document, prediction_table
    from llmtrain.engine.planning import plan_run
    from llmtrain.engine.request import TrainRequest
    from llmtrain.units import format_bytes

    flags = flag_settings(device_kind=device, device_force_cpu=force_cpu, device_processes=nproc)
    request = TrainRequest(profile=profile, assignments=assignments, flags=flags)
    planned = plan_run(request.load(profile).profile)
    if as_json:
        voice.document({**memory_now(), **prediction_document(planned)})
        return 0
    voice.show(prediction_table(planned.prediction, planned.limit_bytes))
    plan = planned.plan
    voice.result(
        f"fits: {format_bytes(planned.prediction.total_bytes)} of "
        f"{format_bytes(planned.limit_bytes)} on {plan.device.value}, micro-batch "
        f"{plan.micro_batch.value} × {planned.needs.shape.context} tokens in {plan.precision.value}"
    )
    return 0
