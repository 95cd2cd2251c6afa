"""`llmtrain device info` and `llmtrain device bench`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from llmtrain.cli.command import command, group
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
from llmtrain.cli.output import Output
from llmtrain.cli.thresholds import Threshold, require_met, thresholds_document
from llmtrain.units import format_bytes

if TYPE_CHECKING:
    from llmtrain.plan.require import Finding


def register(app: typer.Typer) -> None:
    """`device` is a group of `app`."""
    device = group("What the machine has, and how it will be used.")
    app.add_typer(device, name="device")
    command(device, "info")(info)
    command(device, "bench")(bench)


def info(
    output: Output,
    profile: ProfileOption = None,
    device: DeviceOption = None,
    force_cpu: ForceCpuOption = False,
    nproc: NprocOption = None,
    set_: SetOption = None,
    require: Annotated[
        str | None,
        typer.Option(
            "--require",
            metavar="LIST",
            help="Exit with 6 unless all of these are there: "
            "cpu, cuda, mps, bf16, amx, compile, cores:4, memory:8GiB.",
        ),
    ] = None,
    assume: AssumeOption = None,
    json: JsonOption = False,
) -> int:
    """What was found, what will be used, and why."""
    from llmtrain.cli.explain import explained_document, show_assumed, show_explained
    from llmtrain.cli.render import facts_document, facts_table
    from llmtrain.engine.explain import explain
    from llmtrain.engine.request import TrainRequest
    from llmtrain.plan.require import find, parse_requirements

    requirements = [] if require is None else parse_requirements(require)
    flags = flag_settings(device_kind=device, device_force_cpu=force_cpu, device_processes=nproc)
    assumed = assumed_machine(assume)
    request = TrainRequest(profile, assignments=set_ or [], flags=flags, assumed=assumed)
    explained = explain(request)
    facts, device_kind = explained.planned.facts, explained.planned.plan.device.value
    thresholds = [_threshold(find(each, facts, device_kind)) for each in requirements]
    if json:
        found = facts_document(facts) | thresholds_document(thresholds)
        output.document(explained_document(explained) | found)
    else:
        show_assumed(output, assumed)
        output.show(facts_table(facts))
        output.result("")
        show_explained(output, explained)
    require_met(thresholds, hint="run this where there is one, or leave it out of --require")
    return 0


def _threshold(finding: Finding) -> Threshold:
    """What --require asks for, as a limit that is met or not."""
    name, least = finding.requirement.name, finding.requirement.least
    complaint = f"--require {name}"
    if least is not None:
        complaint += f":{format_bytes(least) if name == 'memory' else least}"
    return Threshold(
        f"require {name}",
        True if least is None else least,
        finding.measured,
        met=finding.is_met,
        complaint=f"{complaint} is not met: {finding.found}",
    )


def bench(
    output: Output,
    profile: ProfileOption = None,
    device: DeviceOption = None,
    force_cpu: ForceCpuOption = False,
    set_: SetOption = None,
    no_compile: Annotated[
        bool, typer.Option("--no-compile", help="Measure no block; compiling one takes a while.")
    ] = False,
    json: JsonOption = False,
) -> int:
    """Measure this CPU anew at a profile's work; the next run plans with these times."""
    from llmtrain.machine.startup import prepare_for_torch

    prepare_for_torch()  # as a run does, so that the times are a run's
    from llmtrain.cli.render import bench_document, bench_line, bench_plan_table, bench_table
    from llmtrain.engine.bench import bench_cpu
    from llmtrain.engine.request import TrainRequest
    from llmtrain.machine.probe import read_facts
    from llmtrain.plan.decisions import may_use_gpu

    flags = flag_settings(device_kind=device, device_force_cpu=force_cpu)
    request = TrainRequest(profile=profile, assignments=set_ or [], flags=flags)
    loaded = request.load(profile or "cpu-tiny").profile
    facts = read_facts(tries_gpus=may_use_gpu(loaded.device))
    result = bench_cpu(loaded, facts, block=not no_compile, announce=output.note)
    if result.times.compile_failure is not None:
        output.warning(f"a block cannot be compiled: {result.times.compile_failure}")
    reason = "asked for" if profile else "the smallest one for a CPU"
    if json:
        named = {"profile": {"value": loaded.name, "reason": reason}}
        output.document({**named, **bench_document(result)})
        return 0
    output.result(f"profile {loaded.name}: {reason}")
    output.result(f"cpu {facts.cpu.model or 'unknown'}, {facts.cpu.usable_cores} usable cores")
    output.result("")
    output.show(bench_table(result))
    output.result("")
    output.show(bench_plan_table(result))
    output.result("")
    output.result(bench_line(result))
    return 0
