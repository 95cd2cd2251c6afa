"""llmtrain as a user starts it, and what its run directory says of the steps."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from llmtrain.profile.shape import shape_of
from tests.benchmarks.comparison import Comparison
from tests.benchmarks.documents import Prepared, Trained


class MeasurementError(Exception):
    """A process did not measure what it was to measure."""


def own_command(comparison: Comparison, prepared: Prepared, run: Path) -> list[str]:
    """`llmtrain train` of the shape on the prepared text, with its logs and checkpoints."""
    command = [sys.executable, "-m", "llmtrain", "train", "--debug"]
    command += ["--profile", comparison.shape.profile, "--force-cpu"]
    command += ["--steps", str(comparison.all_steps), "--out", str(run)]
    command += ["--seed", str(comparison.seed), "--tokenizer", str(prepared.tokenizer)]
    for source in prepared.sources:
        command += ["--data", source]
    for assignment in comparison.own_assignments:
        command += ["--set", assignment]
    if comparison.nproc > 1:
        command += ["--nproc", str(comparison.nproc)]
    return command


def read_own(comparison: Comparison, prepared: Prepared, run: Path) -> Trained:
    """What the run directory says. Raises MeasurementError if it trained on something else."""
    record = yaml.safe_load((run / "run.yaml").read_text(encoding="utf-8"))
    if record["data"]["key"] != prepared.key:
        raise MeasurementError(
            f"ours trained on the shards {record['data']['key']}, the others on {prepared.key}"
        )
    metrics = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return Trained(
        step_s=tuple(step_seconds(map(json.loads, metrics))),
        parameters=shape_of(comparison.shape.model).parameters,
        precision=str(record["plan"]["precision"]["value"]),
        details={
            "plan": record["plan"],
            "peak_memory_bytes": record["result"]["peak_memory_bytes"],
            "predicted_peak_memory_bytes": record["result"]["predicted_peak_bytes"],
        },
    )


def step_seconds(metrics: Iterable[Mapping[str, Any]]) -> list[float]:
    """Seconds of each step in lines of metrics.jsonl where every step is logged.

    The rate of a line is since the line before, without evaluation and checkpoints; everything
    else a step brings with it, logging too, is in it.
    """
    steps = [line for line in metrics if "tokens_per_s" in line]
    tokens = [0, *(line["tokens"] for line in steps)]
    return [
        (now - before) / line["tokens_per_s"]
        for before, now, line in zip(tokens[:-1], tokens[1:], steps, strict=True)
    ]
