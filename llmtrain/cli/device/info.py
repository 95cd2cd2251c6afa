"""`llmtrain device info`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from llmtrain.cli import options
from llmtrain.cli.output import Output
from llmtrain.cli.thresholds import Threshold, require_met
from llmtrain.units import counted, format_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from llmtrain.machine.facts import Facts
    from llmtrain.plan.require import Finding


def info(
    output: Output,
    profile: options.Profile = None,
    device: options.Device = None,
    force_cpu: options.ForceCpu = False,
    nproc: options.Nproc = None,
    set_: options.Set = None,
    require: Annotated[
        str | None,
        typer.Option(
            "--require",
            metavar="LIST",
            help="Exit with 6 unless the machine has all of these: "
            "cpu, cuda, mps, bf16, amx, compile, cores:4, memory:8GiB.",
        ),
    ] = None,
    assume: options.Assume = None,
) -> None:
    """Show what the machine has, what of it will be used, and why."""
    from llmtrain.cli.plan_tables import assumed_parts, explained_parts
    from llmtrain.documents.machines import DeviceInfo
    from llmtrain.engine.explain import explain
    from llmtrain.machine.torch_build import replacement_build
    from llmtrain.plan.require import find, parse_requirements

    requirements = [] if require is None else parse_requirements(require)
    request = options.request_of(
        profile,
        set_,
        assume,
        device_kind=device,
        device_force_cpu=force_cpu,
        device_processes=nproc,
    )
    explained = explain(request)
    facts, device_kind = explained.planned.facts, explained.planned.plan.device.value
    thresholds = [_threshold(find(each, facts, device_kind)) for each in requirements]
    found = _facts_table(facts)
    parts = (*assumed_parts(request.assumed), found, "", *explained_parts(explained))
    output.answer(DeviceInfo.of_machine(explained, thresholds), parts)
    build = None if request.assumed else replacement_build(facts)
    if build is not None:
        output.warning(build.reason)
        output.hint(build.command)
    require_met(thresholds, hint="run this on a machine that has it, or leave it out of --require")


def _threshold(finding: Finding) -> Threshold:
    """Return a requirement of --require as a threshold."""
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


def _facts_table(facts: Facts) -> Table:
    """Return what was found on the machine."""
    from llmtrain.cli.tables import facts_table

    cpu = facts.cpu
    limit = ""
    if cpu.memory_limit_bytes is not None:
        by = f" by {cpu.memory_limited_by}" if cpu.memory_limited_by else ""
        limit = f", limited to {format_bytes(cpu.memory_limit_bytes)}{by}"
    rows = [
        ("system", f"{facts.system}, Python {facts.python_version}"),
        ("torch", f"{facts.torch_version} ({facts.torch_build})"),
        ("cpu", f"{cpu.model or 'unknown'}, {cpu.architecture}"),
        (
            "cores",
            (
                f"{cpu.usable_cores} usable of {cpu.physical_cores or '?'} physical, "
                f"{cpu.logical_cores} logical, {_sockets(cpu.sockets)}{_nodes(cpu.numa_cores)}"
            ),
        ),
        ("instructions", ", ".join(cpu.isa) or "unknown"),
        ("memory", format_bytes(cpu.memory_total_bytes) + limit),
        ("compiler", facts.cxx_compiler or "none"),
        *[
            (
                f"{gpu.kind}:{gpu.index}",
                (
                    f"{gpu.name}, {format_bytes(gpu.memory_total_bytes)}, "
                    f"bf16 {'yes' if gpu.supports_bf16 else 'no'}"
                ),
            )
            for gpu in facts.accelerators
        ],
        *[(kind, f"failed: {reason}") for kind, reason in facts.failures],
        *([("gpu", facts.unusable_gpu)] if facts.unusable_gpu else []),
    ]
    return facts_table(rows, title="found")


def _nodes(numa_cores: Sequence[int]) -> str:
    return f", {len(numa_cores)} NUMA nodes" if len(numa_cores) > 1 else ""


def _sockets(number: int | None) -> str:
    return "? sockets" if number is None else counted(number, "socket")
