"""What runs came to, kept so that the next one by the same plan is told it beforehand."""

from __future__ import annotations

from dataclasses import asdict

from llmtrain.device.choice import Needs
from llmtrain.device.facts import Facts, RunFigures
from llmtrain.device.plan import Plan
from llmtrain.device.probe_cache import ProbeKey, keep_times, kept_times, probe_key
from llmtrain.files import cache_directory
from llmtrain.train.events import TrainResult

_FEWEST_STEPS = 5  # from which on a rate says something of the next run


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


def _key(facts: Facts, needs: Needs, plan: Plan) -> ProbeKey:
    decided = {name: str(value) for name, value in plan.numerics().items() if name != "threads"}
    shape = {name: str(value) for name, value in asdict(needs.shape).items()}
    names = ",".join(gpu.name for gpu in facts.accelerators)
    return probe_key(
        facts,
        "run",
        plan.threads.value,
        **{**shape, **decided, "optimizer": needs.optimizer, "accelerators": names},
        tokens_per_step=needs.tokens_per_step,
    )
