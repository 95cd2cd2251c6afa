"""What runs came to, kept so that the next one by the same plan is told it beforehand."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from llmtrain.children import MAIN, python_command
from llmtrain.device.choice import Needs
from llmtrain.device.facts import Facts, RunFigures
from llmtrain.device.plan import Plan
from llmtrain.device.probe_cache import ProbeKey, keep_times, kept_times, probe_key
from llmtrain.errors import LlmtrainError, told_by_exit_code
from llmtrain.files import cache_directory
from llmtrain.train.events import TrainResult

_FEWEST_STEPS = 5  # from which on a rate says something of the next run
_STEPS = 8  # of a run that is only there to be measured
# What the run that is measured does as the one that was planned, though it is much shorter.
_FIXED = ("precision", "threads", "compile", "attention", "activation_checkpointing", "processes")


def kept_run(facts: Facts, needs: Needs, plan: Plan) -> RunFigures | None:
    """The last run by this plan here; None where there was none."""
    return kept_times(cache_directory(), _key(facts, needs, plan), RunFigures)


def keep_run(facts: Facts, needs: Needs, plan: Plan, result: TrainResult) -> None:
    """What the run came to is kept, if it says something: it trained, and kept to its plan."""
    if not result.step_s or result.trained_steps < _FEWEST_STEPS:
        return
    figures = RunFigures(
        tokens_per_s=needs.tokens_per_step / result.step_s,
        peak_memory_bytes=float(result.peak_memory_bytes),
        steps=float(result.trained_steps),
    )
    keep_times(cache_directory(), _key(facts, needs, plan), figures)


def calibrate(options: list[str], facts: Facts, needs: Needs, plan: Plan) -> RunFigures:
    """What a few steps of a run by this plan came to, in a process of its own; they are kept.

    `options` are those of `llmtrain train` that led to the plan. Raises LlmtrainError.
    """
    with tempfile.TemporaryDirectory(prefix="llmtrain-calibrate-") as scratch:
        out = ("--steps", str(_STEPS), "--out", str(Path(scratch) / "run"), "--json", "--quiet")
        command = python_command(MAIN, "train", *options, *_as_planned(needs, plan))
        done = subprocess.run([*command, *out], capture_output=True, text=True)
    if done.returncode != 0:
        raise _failure(done)
    kept = kept_run(facts, needs, plan)
    if kept is None:
        raise LlmtrainError(
            "the run that was to be measured did not keep to the plan: memory became short in it",
            hint="close what takes memory, or add --set train.micro_batch=1",
        )
    return kept


def _as_planned(needs: Needs, plan: Plan) -> Iterator[str]:
    decided = {name: getattr(plan, name).value for name in _FIXED}
    settings = {f"device.{name}": value for name, value in decided.items()}
    settings["train.micro_batch"] = plan.micro_batch.value
    settings["train.tokens_per_step"] = needs.tokens_per_step
    for name, value in settings.items():
        yield f"--set={name}={json.dumps(value)}"


def _failure(done: subprocess.CompletedProcess[str]) -> LlmtrainError:
    try:
        told = json.loads(done.stdout)["error"]
        message, hint = str(told["message"]), str(told["hint"])
    except (ValueError, KeyError, TypeError):
        message, hint = told_by_exit_code(done.returncode), None
    return LlmtrainError(f"the run that was to be measured failed: {message}", hint=hint)


def _key(facts: Facts, needs: Needs, plan: Plan) -> ProbeKey:
    decided = {name: str(value) for name, value in plan.numerics().items() if name != "threads"}
    shape = {name: str(value) for name, value in asdict(needs.shape).items()}
    names = ",".join(gpu.name for gpu in facts.accelerators)
    if needs.mask_documents:
        decided["documents"] = "masked"
    return probe_key(
        facts,
        "run",
        plan.threads.value,
        **{**shape, **decided, "optimizer": needs.optimizer, "accelerators": names},
        tokens_per_step=needs.tokens_per_step,
    )
