"""The table that a reader sees and the document that holds everything."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

from rich.table import Table

from llmtrain.profile.shape import shape_of
from llmtrain.units import format_bytes, format_count
from tests.benchmarks.comparison import Comparison
from tests.benchmarks.documents import Prepared
from tests.benchmarks.results import Failure, Round, Run, Spread, Summary, spread, summarise

SCHEMA_VERSION = 1
_PACKAGES = ("llmtrain", "torch", "transformers", "accelerate", "numpy", "sentencepiece")
_TELLING = (
    "ATEN_",
    "DNNL_",
    "GLIBC_TUNABLES",
    "GOMP_",
    "KMP_",
    "LD_PRELOAD",
    "LLMTRAIN_",
    "MALLOC_",
    "MKL_",
    "OMP_",
    "ONEDNN_",
    "THP_",
    "TORCH",
)


def document(
    comparison: Comparison, prepared: Prepared, rounds: Sequence[Round], command: str
) -> dict[str, Any]:
    """Everything that was measured, on what and by which command."""
    flops = shape_of(comparison.shape.model).training_flops_per_token
    return {
        "schema_version": SCHEMA_VERSION,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "machine": prepared.machine.model_dump(),
        "versions": versions(),
        "environment": telling_environment(),
        "comparison": _settings(comparison),
        "data": prepared.model_dump(mode="json", exclude={"machine"}),
        "flops_per_token": flops,
        "summaries": [asdict(each) for each in summarise(rounds, comparison.systems, flops)],
        "peaks": [each.peaks.model_dump() for each in rounds],
        "runs": [_run(run) for each in rounds for run in each.runs],
        "failures": [asdict(failure) for each in rounds for failure in each.failures],
    }


def versions() -> dict[str, str]:
    """What is installed of all that matters here."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def telling_environment() -> dict[str, str]:
    """The variables that change how fast anything here is."""
    return {name: value for name, value in os.environ.items() if name.startswith(_TELLING)}


def table(summaries: Sequence[Summary], title: str) -> Table:
    """One row a system."""
    result = Table(title=title)
    result.add_column("system")
    headings = ("type", "parameters", "tokens/s", "speed, ours ÷ it", "first step")
    memory = ("peak memory", "largest process", "memory, it ÷ ours")
    for heading in (*headings, *memory, "of its peak", "of bf16 peak"):
        result.add_column(heading, justify="right")
    for summary in summaries:
        result.add_row(
            summary.system,
            summary.precision,
            format_count(summary.parameters),
            _range(summary.tokens_per_s, ",.0f"),
            "" if summary.speed_ratio is None else _range(summary.speed_ratio, ".2f", "×"),
            _range(summary.first_step_s, ".1f", " s"),
            format_bytes(int(summary.peak_bytes.median)),
            format_bytes(int(summary.peak_process_bytes.median)),
            "" if summary.memory_ratio is None else f"{summary.memory_ratio.median:.2f}×",
            f"{summary.utilisation.median:.0%}",
            f"{summary.bf16_utilisation.median:.0%}",
        )
    return result


def title(comparison: Comparison) -> str:
    """What the table compares."""
    shape = comparison.shape
    return (
        f"{shape.name}: micro-batch {shape.micro_batch} × {shape.model.context}, "
        f"{comparison.steps} steps after {comparison.warmup}, rounds: {comparison.rounds}"
    )


def footing(prepared: Prepared, rounds: Sequence[Round]) -> str:
    """The machine and its peak."""
    machine, known = prepared.machine, versions()
    bf16 = spread([each.peaks.bf16_flops / 1e9 for each in rounds])
    fp32 = spread([each.peaks.fp32_flops / 1e9 for each in rounds])
    return (
        f"{machine.cpu or machine.architecture}, {machine.usable_cores} usable cores; "
        f"torch {known.get('torch')}; matrix peak {_range(bf16, ',.0f')} GFLOP/s in bf16, "
        f"{_range(fp32, ',.0f')} in fp32"
    )


def progress_line(outcome: Run | Failure) -> str:
    """One run in one line; a failure with what it said last."""
    where = f"round {outcome.round}  {outcome.system:8}"
    if isinstance(outcome, Failure):
        return f"{where}failed: {outcome.tail}"
    finished = outcome.finished
    return (
        f"{where}{outcome.tokens_per_s:8,.0f} tokens/s  "
        f"first step {outcome.trained.step_s[0]:.1f} s  "
        f"{format_bytes(finished.peak_tree_bytes)}  {finished.wall_s:.0f} s in all"
    )


def _settings(comparison: Comparison) -> dict[str, Any]:
    shape = comparison.shape
    said: dict[str, Any] = {"shape": shape.name, "micro_batch": shape.micro_batch}
    said["model"] = shape.model.model_dump()
    names = ("systems", "rounds", "steps", "warmup", "threads", "nproc", "assignments")
    said |= {name: getattr(comparison, name) for name in (*names, "tokens", "text", "seed")}
    return said


def _run(run: Run) -> dict[str, Any]:
    values = asdict(run) | {"trained": run.trained.model_dump()}
    return values | {"tokens_per_s": run.tokens_per_s}


def _range(values: Spread, form: str, unit: str = "") -> str:
    """The median, and the range where rounds differ in what is shown."""
    least, most = f"{values.least:{form}}", f"{values.most:{form}}"
    middle = f"{values.median:{form}}{unit}"
    return middle if least == most else f"{middle} ({least}–{most})"
