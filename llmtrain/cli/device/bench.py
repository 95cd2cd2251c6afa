"""`llmtrain device bench`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from llmtrain.cli.options import (
    DeviceOption,
    ForceCpuOption,
    JsonOption,
    ProfileOption,
    SetOption,
    flag_settings,
)
from llmtrain.cli.output import Output
from llmtrain.units import format_count, format_duration

if TYPE_CHECKING:
    from rich.table import Table

    from llmtrain.documents.bench import MeasuredPlan
    from llmtrain.engine.bench import Bench


def bench(
    output: Output,
    profile: ProfileOption = None,
    device: DeviceOption = None,
    force_cpu: ForceCpuOption = False,
    set_: SetOption = None,
    no_compile: Annotated[
        bool,
        typer.Option("--no-compile", help="Measure no block: compiling one takes up to a minute."),
    ] = False,
    json: JsonOption = False,
) -> int:
    """Measure this CPU on a profile's shapes; the next run plans with these times."""
    from llmtrain.machine.startup import prepare_for_torch

    prepare_for_torch()  # as a run does, to measure what a run does
    from llmtrain.choice import Choice
    from llmtrain.documents.bench import DeviceBench
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
    document = DeviceBench.of_bench(result, Choice(loaded.name, reason))
    if json:
        output.document(document)
        return 0
    output.result(f"profile {loaded.name}: {reason}")
    output.result(f"cpu {facts.cpu.model or 'unknown'}, {facts.cpu.usable_cores} usable cores")
    output.result("")
    output.show(_times_table(result))
    output.result("")
    output.show(_plan_table(document.plan))
    output.result("")
    output.result(_speed_line(result))
    return 0


def _times_table(measured: Bench) -> Table:
    """Return every measured time, marking those the plan uses."""
    from rich.table import Table

    threads = measured.plan.threads.value
    title = f"measured on {threads} thread{'s' if threads > 1 else ''}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("forward and backward", style="bold", no_wrap=True)
    table.add_column("time", justify="right", style="cyan", no_wrap=True)
    table.add_column("GFLOP/s", justify="right", no_wrap=True)
    table.add_column("plan", no_wrap=True)
    for name, seconds, rate, used in _bench_rows(measured):
        time = f"{1e3 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"
        table.add_row(name, time, rate, "chosen" if used else "")
    return table


def _bench_rows(measured: Bench) -> Iterator[tuple[str, float, str, bool]]:
    """Yield each measurement: name, seconds, GFLOP/s, and whether the plan uses it."""
    from llmtrain.plan.throughput import product_kind, seconds_by_kind

    plan, times = measured.plan, measured.times
    names = {"fp32": "products, fp32", "medium": "products, fp32 medium", "bf16": "products, bf16"}
    used = product_kind(plan.precision.value, plan.matmul_precision.value)
    for kind, seconds in seconds_by_kind(times.matmul).items():
        rate = f"{times.matmul.flops / seconds / 1e9:,.1f}"
        yield names[kind], seconds, rate, kind == used
    if times.attention is not None:
        blocks = plan.attention.value == "blocks"
        yield "attention, torch's kernel", times.attention.sdpa_s, "", not blocks
        yield "attention, products over blocks", times.attention.blocks_s, "", blocks
    if times.block is not None:
        compiled = plan.compile.value
        yield "one block, eager", times.block.eager_s, "", not compiled
        yield "one block, compiled", times.block.compiled_s, "", compiled
        yield "compiling one block", times.block.compile_s, "", False


def _plan_table(plan: MeasuredPlan) -> Table:
    """Return the decisions that the measured times determine."""
    from llmtrain.cli.tables import plain_value, rows_table

    rows = [(name, plain_value(choice.value), choice.reason) for name, choice in plan]
    return rows_table("plan", ("decision", "value", "why"), rows)


def _speed_line(measured: Bench) -> str:
    """Return the predicted speed of training."""
    if measured.step_s is None or measured.tokens_per_s is None:
        return "predicted: unknown, because no block was measured as the plan computes it"
    rate = format_count(round(measured.tokens_per_s))
    return f"predicted: {rate} tokens/s, {format_duration(measured.step_s)} per step"
