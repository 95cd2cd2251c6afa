"""A request, a machine and what follows: every value with its origin, every decision with its
reason. All that shows a plan shows this."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llmtrain.choice import Choice
from llmtrain.engine.plan_run import plan_run, workload_of
from llmtrain.engine.recorded import recorded_plan
from llmtrain.engine.request import TrainRequest, choose, loaded_profile
from llmtrain.engine.resume import preview, target_at
from llmtrain.machine.assume import AssumedMachine
from llmtrain.machine.out_of_memory import memory_errors_mapped
from llmtrain.plan.forecast import Forecast, forecast
from llmtrain.plan.inference_memory import predict_evaluation, predict_generation
from llmtrain.plan.memory import MemoryPrediction
from llmtrain.plan.past_runs import last_run
from llmtrain.plan.planned import Planned, planned_with
from llmtrain.profile.load import LoadedProfile, flat_values
from llmtrain.profile.schema import Profile
from llmtrain.profile.shape import shape_of
from llmtrain.recipe.learning_rate import peak_learning_rates
from llmtrain.train.distributed.world import World

PLAN = "plan"  # the origin of what nobody asked for
_OPTIONS = {  # the profile's key for a decision of the plan
    "device": "device.kind",
    "precision": "device.precision",
    "processes": "device.processes",
    "threads": "device.threads",
    "micro_batch": "train.micro_batch",
    "attention": "device.attention",
    "compile": "device.compile",
    "activation_checkpointing": "device.activation_checkpointing",
    "backend": "device.backend",
    "workers": "device.workers",
    "pin_memory": "device.pin_memory",
}


@dataclass(frozen=True, slots=True)
class Explained:
    """What would be trained, how, and why."""

    profile: Choice[str]  # its name
    loaded: LoadedProfile
    planned: Planned
    assumed: AssumedMachine | None

    @property
    def forecast(self) -> Forecast:
        """What the run will take and come to."""
        return forecast(self.loaded.profile, self.planned)

    def uses(self) -> dict[str, MemoryPrediction]:
        """The peak memory of what comes after training, by its name."""
        shape, plan = self.planned.workload.shape, self.planned.plan
        predictions = {"evaluation": predict_evaluation, "generation": predict_generation}
        is_half = plan.precision.value != "fp32"
        return {
            name: predict(shape, plan.device.value, half_precision=is_half)
            for name, predict in predictions.items()
        }

    def settings(self) -> Iterator[tuple[str, Any, str]]:
        """Every value of the profile: its dotted key, the value, and who said it."""
        for path, value in self._values().items():
            yield path, value, self.loaded.origin_of(path)

    def decisions(self) -> Iterator[tuple[str, Choice[Any], str]]:
        """Every decision of the plan: its name, what and why, and who asked for it, or `plan`."""
        for name, choice in self.planned.plan.choices():
            yield name, choice, self._who_asked(name)

    def derived(self) -> dict[str, Choice[Any]]:
        """What becomes of values that are `auto` and about which the plan says nothing."""
        return self._for_auto(_by_rule(self.loaded.profile, self.planned.workload.tokens_per_step))

    def decided(self) -> dict[str, Choice[Any]]:
        """What becomes of every `auto` of the profile, by its dotted key."""
        plan = dict(self.planned.plan.choices())
        by_plan = self._for_auto({path: plan[name] for name, path in _OPTIONS.items()})
        return by_plan | self.derived()

    def _who_asked(self, decision: str) -> str:
        if decision == "device" and self.loaded.profile.device.force_cpu:
            return self.loaded.origin_of("device.force_cpu")
        path = _OPTIONS.get(decision)
        if path is None or self._values()[path] == "auto":
            return PLAN
        return self.loaded.origin_of(path)

    def _for_auto(self, choices: dict[str, Choice[Any]]) -> dict[str, Choice[Any]]:
        values = self._values()
        return {path: choice for path, choice in choices.items() if values[path] == "auto"}

    def _values(self) -> dict[str, Any]:
        return dict(flat_values(self.loaded.profile.values()))


def explain(request: TrainRequest) -> Explained:
    """What a new run of the request would be, on this machine or an assumed one.

    Raises UsageError and DoesNotFitError.
    """
    chosen = choose(request)
    loaded = loaded_profile(request, chosen)
    return _explained(request, chosen.profile.reason, loaded, _planned(request, loaded))


@memory_errors_mapped()
def explain_run(request: TrainRequest) -> Explained:
    """What the request would run: a new run, or one that goes on. Changes nothing."""
    place = preview(request)
    target = target_at(request, place)
    chosen, loaded, facts = place.chosen, target.loaded, request.facts()
    reason = f"of the run in {target.directory.path}" if chosen is None else chosen.profile.reason
    kept = recorded_plan(target, facts, World())
    if kept is None:
        return _explained(request, reason, loaded, _planned(request, loaded))
    workload = workload_of(loaded.profile, None, facts)
    planned = planned_with(kept, workload, facts, kept=last_run(facts, workload, kept))
    return _explained(request, reason, loaded, planned)


def _planned(request: TrainRequest, loaded: LoadedProfile) -> Planned:
    return plan_run(loaded.profile, facts=request.facts(), measure=request.assumed is None)


def _explained(
    request: TrainRequest, reason: str, loaded: LoadedProfile, planned: Planned
) -> Explained:
    return Explained(Choice(loaded.profile.name, reason), loaded, planned, request.assumed)


def _by_rule(profile: Profile, tokens_per_step: int) -> dict[str, Choice[Any]]:
    """What values of a shape and learning rates are where they are `auto`."""
    shape, optim = shape_of(profile.model), profile.optim
    rates = peak_learning_rates(optim, shape.hidden_size, tokens_per_step)
    rule = f"by the rule for {tokens_per_step} tokens a step and width {shape.hidden_size}"
    embedding = rule if optim.name == "muon" else "the hidden matrices'"
    return {
        "model.num_kv_heads": Choice(shape.num_kv_heads, "as many as num_heads"),
        "model.head_dim": Choice(shape.head_dim, "hidden_size ÷ num_heads"),
        "optim.learning_rate": Choice(rates["matrix"], rule),
        "optim.embedding_learning_rate": Choice(rates["embedding"], embedding),
        "optim.head_learning_rate": Choice(rates["head"], "the embedding's"),
    }
