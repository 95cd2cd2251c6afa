"""Train a few steps as planned, to see what they take."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from llmtrain.children import MAIN, python_command
from llmtrain.errors import LlmtrainError, describe_exit_code
from llmtrain.machine.facts import Facts, RunFigures
from llmtrain.plan.past_runs import last_run
from llmtrain.plan.planner import Plan
from llmtrain.plan.workload import Workload

_STEPS = 8  # of a run that is only there to be measured
# What the run that is measured does as the one that was planned, though it is much shorter.
_FIXED = ("precision", "threads", "compile", "attention", "activation_checkpointing", "processes")


def calibrate(options: list[str], facts: Facts, workload: Workload, plan: Plan) -> RunFigures:
    """What a few steps of a run by this plan came to, in a process of its own; they are kept.

    `options` are those of `llmtrain train` that led to the plan. Raises LlmtrainError.
    """
    with tempfile.TemporaryDirectory(prefix="llmtrain-calibrate-") as scratch:
        out = ("--steps", str(_STEPS), "--out", str(Path(scratch) / "run"), "--json", "--quiet")
        command = python_command(MAIN, "train", *options, *_as_planned(workload, plan))
        done = subprocess.run([*command, *out], capture_output=True, text=True)
    if done.returncode != 0:
        raise _failure(done)
    kept = last_run(facts, workload, plan)
    if kept is None:
        raise LlmtrainError(
            "the run that was to be measured did not keep to the plan: memory became short in it",
            hint="close what takes memory, or add --set train.micro_batch=1",
        )
    return kept


def _as_planned(workload: Workload, plan: Plan) -> Iterator[str]:
    decided = {name: getattr(plan, name).value for name in _FIXED}
    settings = {f"device.{name}": value for name, value in decided.items()}
    settings["train.micro_batch"] = plan.micro_batch.value
    settings["train.tokens_per_step"] = workload.tokens_per_step
    for name, value in settings.items():
        yield f"--set={name}={json.dumps(value)}"


def _failure(done: subprocess.CompletedProcess[str]) -> LlmtrainError:
    try:
        told = json.loads(done.stdout)["error"]
        message, hint = str(told["message"]), str(told["hint"])
    except (ValueError, KeyError, TypeError):
        message, hint = describe_exit_code(done.returncode), None
    return LlmtrainError(f"the run that was to be measured failed: {message}", hint=hint)
