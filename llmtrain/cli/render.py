"""Values as tables, lines and documents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from llmtrain.choice import Choice
from llmtrain.engine.bench import Bench
from llmtrain.machine.facts import Facts
from llmtrain.plan.memory import MemoryPrediction
from llmtrain.plan.planned import Planned
from llmtrain.plan.planner import Plan
from llmtrain.plan.throughput import product_kind, seconds_by_kind
from llmtrain.train.events import TrainResult
from llmtrain.train.run_directory.directory import RunDirectory
from llmtrain.units import format_bytes, format_count, format_duration

_MEASURED_DECISIONS = (
    "precision",
    "matmul_precision",
    "attention",
    "compile",
    "threads",
    "micro_batch",
    "activation_checkpointing",
)


def rows_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Rows of a name, a value and words about it."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    name, value, *words = columns
    table.add_column(name, style="bold", no_wrap=True)
    table.add_column(value, style="cyan")
    for word in words:
        table.add_column(word)
    for row in rows:
        table.add_row(*row)
    return table


def prediction_table(prediction: MemoryPrediction, limit_bytes: int) -> Table:
    """Where the memory of one process goes."""
    table = Table(title="predicted memory", title_justify="left", box=None, pad_edge=False)
    table.add_column("part", style="bold")
    table.add_column("size", justify="right", style="cyan")
    for name, size in prediction.items().items():
        table.add_row(name.removesuffix("_bytes"), format_bytes(size))
    table.add_row("limit", format_bytes(limit_bytes))
    return table


def facts_table(facts: Facts) -> Table:
    """What was found on the machine."""
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
                f"{cpu.logical_cores} logical, {cpu.sockets or '?'} sockets"
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
    table = Table(title="found", title_justify="left", box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, value in rows:
        table.add_row(name, value)
    return table


def facts_document(facts: Facts) -> dict[str, Any]:
    """What was found, as `device info --json` says it."""
    cpu = facts.cpu
    return {
        "platform": {
            "system": facts.system,
            "python": facts.python_version,
            "torch": facts.torch_version,
            "torch_build": facts.torch_build,
            "cxx_compiler": facts.cxx_compiler,
            "triton": facts.has_triton,
            "backends": list(facts.backends),
        },
        "cpu": {
            "model": cpu.model,
            "architecture": cpu.architecture,
            "physical_cores": cpu.physical_cores,
            "logical_cores": cpu.logical_cores,
            "sockets": cpu.sockets,
            "usable_cores": cpu.usable_cores,
            "quota_cores": cpu.quota_cores,
            "isa": list(cpu.isa),
            "memory_total_bytes": cpu.memory_total_bytes,
            "memory_limit_bytes": cpu.memory_limit_bytes,
            "memory_limited_by": cpu.memory_limited_by,
        },
        "accelerators": [
            {
                "kind": gpu.kind,
                "index": gpu.index,
                "name": gpu.name,
                "memory_total_bytes": gpu.memory_total_bytes,
                "supports_bf16": gpu.supports_bf16,
                "compute_capability": gpu.compute_capability,
            }
            for gpu in facts.accelerators
        ],
        "failures": [{"kind": kind, "reason": reason} for kind, reason in facts.failures],
        "unusable_gpu": facts.unusable_gpu,
    }


def prediction_document(planned: Planned) -> dict[str, Any]:
    """The itemised prediction, whether it fits, and what was measured of such a run."""
    total, kept = planned.prediction.total_bytes, planned.kept
    return {
        "prediction": planned.prediction.items(),
        "limit_bytes": planned.limit_bytes,
        "fits": total <= planned.limit_bytes,
        "measured": None
        if kept is None
        else {
            "peak_memory_bytes": round(kept.peak_memory_bytes),
            "tokens_per_s": kept.tokens_per_s,
            "steps": round(kept.steps),
        },
    }


def measured_line(planned: Planned) -> str | None:
    """What a run by this plan took here, beside what is predicted; None where there was none."""
    if planned.kept is None:
        return None
    predicted_bytes = planned.prediction.measured_on(planned.plan.device.value)
    error = predicted_bytes / planned.kept.peak_memory_bytes - 1
    return (
        f"measured: {format_bytes(round(planned.kept.peak_memory_bytes))}, predicted "
        f"{abs(error):.1%} {'more' if error > 0 else 'less'}; in a run of "
        f"{planned.kept.steps:.0f} steps by this plan on this machine"
    )


def bench_table(bench: Bench) -> Table:
    """Every measured time, and what of it the plan uses."""
    threads = bench.plan.threads.value
    title = f"measured on {threads} thread{'s' if threads > 1 else ''}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("forward and backward", style="bold", no_wrap=True)
    table.add_column("time", justify="right", style="cyan", no_wrap=True)
    table.add_column("GFLOP/s", justify="right", no_wrap=True)
    table.add_column("plan", no_wrap=True)
    for name, seconds, rate, used in _bench_rows(bench):
        time = f"{1e3 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"
        table.add_row(name, time, rate, "chosen" if used else "")
    return table


def bench_plan_table(bench: Bench) -> Table:
    """The decisions that the measured times bear on."""
    choices = _measured_choices(bench.plan).items()
    rows = [(name, plain_value(choice.value), choice.reason) for name, choice in choices]
    return rows_table("plan", ("decision", "value", "why"), rows)


def bench_line(bench: Bench) -> str:
    """The speed that training is predicted to have."""
    if bench.step_s is None or bench.tokens_per_s is None:
        return "predicted: no speed, for want of a block measured as the plan computes it"
    rate = format_count(round(bench.tokens_per_s))
    return f"predicted: {rate} tokens/s, {format_duration(bench.step_s)} a step"


def bench_document(bench: Bench) -> dict[str, Any]:
    """What was measured and what follows from it, as `device bench --json` says it."""
    cpu, times = bench.facts.cpu, bench.times
    attention, choices = times.attention, _measured_choices(bench.plan)
    return {
        "cpu": {
            "model": cpu.model,
            "cores": cpu.usable_cores,
            "threads": bench.plan.threads.value,
        },
        "products": {
            kind: {"seconds": seconds, "gflops": times.matmul.flops / seconds / 1e9}
            for kind, seconds in seconds_by_kind(times.matmul).items()
        },
        "attention": asdict(attention) if attention is not None else None,
        "block": asdict(times.block) if times.block is not None else None,
        "compile_failure": times.compile_failure,
        "plan": {name: {"value": c.value, "reason": c.reason} for name, c in choices.items()},
        "predicted": {"tokens_per_s": bench.tokens_per_s, "step_s": bench.step_s}
        if bench.step_s is not None
        else None,
    }


def _bench_rows(bench: Bench) -> Iterator[tuple[str, float, str, bool]]:
    """What was timed, seconds, GFLOP/s, and whether the plan uses it."""
    plan, times = bench.plan, bench.times
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


def _measured_choices(plan: Plan) -> dict[str, Choice[Any]]:
    choices = dict(plan.choices())
    return {name: choices[name] for name in _MEASURED_DECISIONS}


def summary_lines(result: TrainResult) -> list[str]:
    """What came out of a run, and what to type next."""
    if result.already_finished:
        return [f"already finished: {result.run}, {result.steps} steps"]
    lines = []
    if result.steps:
        rate = (
            f", {format_count(round(result.tokens_per_s))} tokens/s" if result.tokens_per_s else ""
        )
        lines.append(
            f"{_ending(result)} after {result.steps} steps, {format_count(result.tokens)} tokens, "
            f"{format_duration(result.seconds)}{rate}"
        )
    if result.val_loss is not None and result.val_bpb is not None:
        lines.append(
            f"validation loss {result.val_loss:.4f} nats/token, {result.val_bpb:.4f} bits/byte"
        )
    if result.energy_joules is not None:
        lines.append(f"energy {result.energy_joules / 3.6e6:.3g} kWh in this sitting")
    lines.extend(_beside_predictions(result))
    return [*lines, *_next_commands(result)]


def _beside_predictions(result: TrainResult) -> Iterator[str]:
    """What was measured beside what was said before the run."""
    if result.predicted_peak_bytes is not None:
        measured, predicted = result.peak_memory_bytes, result.predicted_peak_bytes
        yield f"peak memory {format_bytes(measured)}, predicted {format_bytes(predicted)}"
    if result.predicted_tokens_per_s is not None and result.step_s is not None:
        rate = result.trained_tokens_per_step / result.step_s
        told = f"{format_count(round(rate))} tokens/s, predicted "
        told += f"{format_count(round(result.predicted_tokens_per_s))}"
        if result.predicted_seconds is not None and result.stopped == "done":
            told += f"; {format_duration(result.seconds)}, predicted "
            told += format_duration(result.predicted_seconds)
        yield told


def _ending(result: TrainResult) -> str:
    return {"done": "done", "time": "time is up", "interrupted": "interrupted"}[result.stopped]


def _next_commands(result: TrainResult) -> list[str]:
    if result.checkpoint is None and not RunDirectory(result.run).exists:
        return ["nothing is trained yet; the same command again starts over"]
    if result.stopped == "interrupted":
        return [f"go on:    llmtrain train --out {result.run} --resume auto"]
    return [
        f"run:      {result.run}",
        f"evaluate: llmtrain eval {result.run}",
        f"generate: llmtrain generate {result.run} --prompt 'def '",
    ]


def plain_value(value: object) -> str:
    """A value in a table."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
