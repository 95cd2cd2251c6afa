"""Train a few steps as planned, to measure throughput and peak memory."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ValidationError

from llmtrain.children import MAIN, python_command
from llmtrain.errors import LlmtrainError, describe_exit_code
from llmtrain.machine.facts import Facts, RunFigures
from llmtrain.plan.past_runs import last_run, replace_run
from llmtrain.plan.planner import Plan
from llmtrain.plan.workload import Workload

_STEPS = 8  # of the measured run
# Decisions that would come out differently for so short a run.
_FIXED = (
    *("precision", "threads", "compile", "attention", "loss", "block_kernels"),
    *("activation_checkpointing", "processes"),
)


class _Failure(BaseModel):
    message: str
    hint: str | None = None


class _Failed(BaseModel):
    """The error document of `llmtrain train --json`."""

    error: _Failure


def calibrate(options: list[str], facts: Facts, workload: Workload, plan: Plan) -> RunFigures:
    """Run a few steps by this plan in a child process, and return and save the figures.

    `options` are the options of `llmtrain train` that led to the plan. Raises LlmtrainError.
    """
    with tempfile.TemporaryDirectory(prefix="llmtrain-calibrate-") as scratch:
        out = ("--steps", str(_STEPS), "--out", str(Path(scratch) / "run"), "--json", "--quiet")
        command = python_command(MAIN, "train", *options, *_as_planned(workload, plan))
        before = last_run(facts, workload, plan)
        replace_run(facts, workload, plan, None)  # an undisturbed run would stay
        done = subprocess.run([*command, *out], capture_output=True, text=True)
    measured = last_run(facts, workload, plan)
    if measured is None and before is not None:
        replace_run(facts, workload, plan, before)
    if done.returncode != 0:
        raise _failure(done)
    if measured is None:
        raise LlmtrainError(
            "the measured run left the plan because memory became short",
            hint="close other programs, or add --set train.micro_batch=1",
        )
    return measured


def _as_planned(workload: Workload, plan: Plan) -> Iterator[str]:
    decided = {name: getattr(plan, name).value for name in _FIXED}
    settings = {f"device.{name}": value for name, value in decided.items()}
    settings["train.micro_batch"] = plan.micro_batch.value
    settings["train.tokens_per_step"] = workload.tokens_per_step
    for name, value in settings.items():
        yield f"--set={name}={json.dumps(value)}"


def _failure(done: subprocess.CompletedProcess[str]) -> LlmtrainError:
    try:
        failure = _Failed.model_validate_json(done.stdout).error
    except ValidationError:
        failure = _Failure(message=describe_exit_code(done.returncode))
    return LlmtrainError(f"the measured run failed: {failure.message}", hint=failure.hint)
