"""What a run logged, as curves: the steps that count after rewinds, evaluations, and trouble."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmtrain.train.run_directory.directory import RunDirectory


@dataclass(frozen=True, slots=True)
class LoggedStep:
    """A logged step; what the line does not say is not a number."""

    step: int
    tokens: float
    elapsed_s: float
    loss: float
    lr: float
    grad_norm: float
    tokens_per_s: float
    memory_bytes: float  # the device's: of a GPU what its allocator reserved


@dataclass(frozen=True, slots=True)
class LoggedEvaluation:
    """An evaluation, and how much was trained by then."""

    step: int
    tokens: float
    elapsed_s: float
    val_loss: float
    val_bpb: float


@dataclass(frozen=True, slots=True)
class Rewind:
    """The run went back from a step to an earlier one."""

    from_step: int
    to_step: int


@dataclass(frozen=True, slots=True)
class RunHistory:
    """The curves of a run, in order of the steps."""

    steps: tuple[LoggedStep, ...]
    evaluations: tuple[LoggedEvaluation, ...]
    skipped: tuple[int, ...]
    rewinds: tuple[Rewind, ...]


def read_history(run: RunDirectory) -> RunHistory:
    """Return what metrics.jsonl says. Steps that a rewind undid are left out."""
    steps: dict[int, LoggedStep] = {}
    evaluations: dict[int, Mapping[str, Any]] = {}
    skipped: list[int] = []
    rewinds: list[Rewind] = []
    for line in run.read_metrics():
        step = line["step"]
        if "loss" in line:
            steps[step] = _logged_step(step, line)
        elif "val_loss" in line:
            evaluations[step] = line
        elif line.get("skipped") is True:
            skipped.append(step)
        elif type(line.get("rewound_from")) is int:
            rewinds.append(Rewind(line["rewound_from"], step))
            for undone in [each for each in steps if each > step]:
                del steps[undone]
            for undone in [each for each in evaluations if each > step]:
                del evaluations[undone]
    ordered = tuple(steps[step] for step in sorted(steps))
    return RunHistory(
        ordered, _logged_evaluations(evaluations, ordered), tuple(skipped), tuple(rewinds)
    )


def _logged_step(step: int, line: Mapping[str, Any]) -> LoggedStep:
    memory = "accelerator_bytes" if "accelerator_bytes" in line else "memory_bytes"
    names = ("tokens", "elapsed_s", "loss", "lr", "grad_norm", "tokens_per_s", memory)
    return LoggedStep(step, *(_number(line.get(name)) for name in names))


def _logged_evaluations(
    lines: Mapping[int, Mapping[str, Any]], steps: Sequence[LoggedStep]
) -> tuple[LoggedEvaluation, ...]:
    """Return the evaluations, with tokens and time interpolated between logged steps."""
    known = [0, *(each.step for each in steps)]
    tokens, seconds = (
        np.interp(sorted(lines), known, [0.0, *(getattr(each, name) for each in steps)])
        for name in ("tokens", "elapsed_s")
    )
    return tuple(
        LoggedEvaluation(
            step,
            float(tokens[row]),
            float(seconds[row]),
            _number(lines[step].get("val_loss")),
            _number(lines[step].get("val_bpb")),
        )
        for row, step in enumerate(sorted(lines))
    )


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan
