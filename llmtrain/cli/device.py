"""`llmtrain device info`."""

from __future__ import annotations

import typer

from llmtrain.cli.command import command, group
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
    """`device` is a group of `app`."""
    device = group("What the machine has, and how it will be used.")
    app.add_typer(device, name="device")
    command(device, "info")(info)


def info(
    voice: Voice,
    profile: ProfileOption = None,
    device: DeviceOption = None,
    force_cpu: ForceCpuOption = False,
    nproc: NprocOption = None,
    set_: SetOption = None,
    json: JsonOption = False,
) -> int:
    """What was found, what will be used, and why."""
    from llmtrain.cli.render import facts_document, facts_table, plan_document, plan_table
    from llmtrain.device.probe import read_facts
    from llmtrain.engine.planning import choose_profile, plan_run
    from llmtrain.engine.request import TrainRequest

    flags = flag_settings(device_kind=device, device_force_cpu=force_cpu, device_processes=nproc)
    facts = read_facts()
    chosen = choose_profile(facts, None)
    request = TrainRequest(profile=profile or chosen.value, assignments=set_ or [], flags=flags)
    loaded = request.load(request.profile)
    planned = plan_run(loaded.profile, facts=facts, measure=True)
    reason = "asked for" if profile else chosen.reason
    if json:
        named = {"profile": {"value": loaded.profile.name, "reason": reason}}
        voice.document({**facts_document(facts), **plan_document(planned), **named})
        return 0
    voice.show(facts_table(facts))
    voice.result("")
    voice.result(f"profile {loaded.profile.name}: {reason}")
    voice.result("")
    voice.show(plan_table(planned.plan))
    return 0
