"""`llmtrain device bench`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from llmtrain.cli import options
from llmtrain.cli.output import Output
from llmtrain.units import counted, format_count, format_duration

if TYPE_CHECKING:
    from rich.table import Table

    from llmtrain.cli.output import Part
    from llmtrain.documents.bench import DeviceBench, StepParts


def bench(
    output: Output,
    profile: options.Profile = None,
    device: options.Device = None,
    force_cpu: options.ForceCpu = False,
    set_: options.Set = None,
    no_compile: Annotated[
        bool,
        typer.Option(
            "--no-compile", help="Measure nothing compiled: compiling takes up to a minute."
        ),
    ] = False,
) -> None:
    """Measure this CPU on a profile's shapes; the next run plans with these times."""
    from llmtrain.machine.startup import prepare_for_torch

    prepare_for_torch()  # as a run does, to measure what a run does
    from llmtrain.documents.bench import DeviceBench, step_parts
    from llmtrain.engine.bench import bench_cpu
    from llmtrain.plan.throughput import seconds_by_kind

    request = options.request_of(profile, set_, device_kind=device, device_force_cpu=force_cpu)
    loaded = request.load(profile or "cpu-tiny").profile
    facts = request.read_facts(loaded.device)
    result = bench_cpu(loaded, facts, block=not no_compile, announce=output.note)
    times, cpu, threads = result.times, facts.cpu, result.plan.threads.value
    if times.compile_failure is not None:
        output.warning(f"a block cannot be compiled: {times.compile_failure}")
    reason = "asked for" if profile else "the smallest one for a CPU"
    document = DeviceBench.of(
        times,  # attention, loss, native_missing, block, compile_failure
        profile={"value": loaded.name, "reason": reason},
        cpu={"model": cpu.model, "cores": cpu.usable_cores, "threads": threads},
        products={
            kind: {"seconds": seconds, "gflops": times.matmul.flops / seconds / 1e9}
            for kind, seconds in seconds_by_kind(times.matmul).items()
        },
        eager=step_parts(times.eager),
        compiled=step_parts(times.compiled),
        native=step_parts(times.native),
        native_keeping=step_parts(times.native_keeping),
        plan=result.plan,
        predicted=result if result.step_s is not None else None,
    )
    output.answer(document, _parts(document))


def _parts(measured: DeviceBench) -> Iterator[Part]:
    """Yield what was measured, the decisions that follow, and the predicted speed."""
    from llmtrain.cli.tables import plain_value, rows_table

    yield f"profile {measured.profile.value}: {measured.profile.reason}"
    yield f"cpu {measured.cpu.model or 'unknown'}, {measured.cpu.cores} usable cores"
    yield ""
    yield _times_table(measured)
    yield ""
    rows = [(name, plain_value(choice.value), choice.reason) for name, choice in measured.plan]
    yield rows_table("plan", ("decision", "value", "why"), rows)
    yield ""
    if measured.predicted is None or measured.predicted.tokens_per_s is None:
        yield "predicted: unknown, because no step was measured as the plan computes it"
    else:
        rate = format_count(round(measured.predicted.tokens_per_s))
        yield f"predicted: {rate} tokens/s, {format_duration(measured.predicted.step_s)} per step"


def _times_table(measured: DeviceBench) -> Table:
    """Return every measured time, marking those the plan uses."""
    from rich.table import Table

    title = f"measured on {counted(measured.cpu.threads, 'thread')}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("forward and backward", style="bold", no_wrap=True)
    table.add_column("time", justify="right", style="cyan", no_wrap=True)
    table.add_column("GFLOP/s", justify="right", no_wrap=True)
    table.add_column("plan", no_wrap=True)
    for name, seconds, rate, used in _times(measured):
        time = f"{1e3 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"
        table.add_row(name, time, rate, "chosen" if used else "")
    return table


def _times(measured: DeviceBench) -> Iterator[tuple[str, float, str, bool]]:
    """Yield each measurement: name, seconds, GFLOP/s, and whether the plan uses it."""
    from llmtrain.plan.throughput import product_kind

    plan = measured.plan
    names = {"fp32": "products, fp32", "medium": "products, fp32 medium", "bf16": "products, bf16"}
    used = product_kind(plan.precision.value, plan.matmul_precision.value)
    for kind, product in measured.products:
        yield names[kind], product.seconds, f"{product.gflops:,.1f}", kind == used
    if measured.attention is not None:
        kernel, attention = plan.attention.value, measured.attention
        yield "attention, torch's kernel", attention.sdpa_s, "", kernel == "sdpa"
        yield "attention, products over blocks", attention.blocks_s, "", kernel == "blocks"
        if attention.native_s is not None:
            yield "attention, native kernel", attention.native_s, "", kernel == "native"
    if measured.loss is not None:
        native = plan.loss.value == "native"
        yield "loss, in chunks", measured.loss.chunks_s, "", not native
        yield "loss, native kernel", measured.loss.native_s, "", native
    if measured.block is not None:
        compiled = plan.compile.value
        yield "one block, eager", measured.block.eager_s, "", not compiled
        yield "one block, compiled", measured.block.compiled_s, "", compiled
        yield "compiling one block", measured.block.compile_s, "", False
        if measured.block.load_s is not None:
            yield "loading what was compiled", measured.block.load_s, "", False
        if measured.block.import_s is not None:
            yield "importing the compiler", measured.block.import_s, "", False
    native, compiled = plan.block_kernels.value == "native", plan.compile.value
    yield from _step_times("eager", measured.eager, used=not native and not compiled)
    yield from _step_times("compiled", measured.compiled, used=compiled)
    keeps = measured.native_keeping is not None and plan.activation_checkpointing.value == "off"
    yield from _step_times("native", measured.native, used=native and not keeps)
    yield from _step_times("native, gates kept,", measured.native_keeping, used=native and keeps)


def _step_times(
    way: str, parts: StepParts | None, *, used: bool
) -> Iterator[tuple[str, float, str, bool]]:
    """Yield the parts of a step that is computed in this way."""
    if parts is None:
        return
    busy = ", busy machine" if parts.contended else ""
    yield f"{way} step: a block{busy}", parts.block_s, "", used
    yield f"{way} step: head and loss{busy}", parts.head_s, "", used
    yield f"{way} step: optimizer{busy}", parts.update_s, "", used
