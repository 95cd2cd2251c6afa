"""A request, a machine and what follows: every value with its origin, every decision with its
reason. All that shows a plan shows this."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llmtrain.device.assume import AssumedMachine
from llmtrain.device.choice import Choice
from llmtrain.device.exhaustion import memory_errors_mapped
from llmtrain.engine.planning import Planned, needs_of, plan_run, planned_with
from llmtrain.engine.recorded import recorded_plan
from llmtrain.engine.request import TrainRequest, choose, loaded_profile
from llmtrain.engine.target import preview, target_at
from llmtrain.profile.load import LoadedProfile, flat_values
from llmtrain.profile.schema import Profile
from llmtrain.profile.shape import shape_of
from llmtrain.train.rates import peak_learning_rates
from llmtrain.train.world import World

PLAN = "plan"  # the origin of what nobody asked for
_WISHES = {  # the profile's key for a decision of the plan
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

    profile: Choice[str]
    loaded: LoadedProfile
    planned: Planned
    assumed: AssumedMachine | None

    def settings(self) -> Iterator[tuple[str, Any, str]]:
        """Every value of the profile: its dotted key, the value, and who said it."""
        for path, value in flat_values(self.loaded.profile.values()):
            yield path, value, self.loaded.origin_of(path)

    def decisions(self) -> Iterator[tuple[str, Choice[Any], str]]:
        """Every decision of the plan: its name, what and why, and who asked for it, or `plan`."""
        for name, choice in self.planned.plan.choices():
            yield name, choice, self._who_asked(name)

    def derived(self) -> dict[str, Choice[Any]]:
        """What becomes of values that are `auto` and about which the plan says nothing."""
        return derived_values(self.loaded.profile, self.planned.needs.tokens_per_step)

    def decided(self) -> dict[str, Choice[Any]]:
        """What becomes of every `auto` of the profile, by its dotted key."""
        values = dict(flat_values(self.loaded.profile.values()))
        plan = dict(self.planned.plan.choices())
        by_plan = {_WISHES[name]: plan[name] for name in _WISHES}
        choices = by_plan | self.derived()
        return {path: choice for path, choice in choices.items() if values.get(path) == "auto"}

    def _who_asked(self, decision: str) -> str:
        if decision == "device" and self.loaded.profile.device.force_cpu:
            return self.loaded.origin_of("device.force_cpu")
        path = _WISHES.get(decision)
        wish = dict(flat_values(self.loaded.profile.values())).get(path or "", "auto")
        return PLAN if path is None or wish == "auto" else self.loaded.origin_of(path)


def explain(request: TrainRequest) -> Explained:
    """What a new run of the request would be, on this machine or an assumed one.

    Raises UsageError and DoesNotFitError.
    """
    chosen = choose(request)
    return _explained(request, chosen.profile, loaded_profile(request, chosen))


@memory_errors_mapped()
def explain_run(request: TrainRequest) -> Explained:
    """What the request would run: a new run, or one that goes on. Changes nothing."""
    place = preview(request)
    target = target_at(request, place)
    of_run = Choice(target.loaded.profile.name, f"of the run in {target.directory.path}")
    profile = place.chosen.profile if place.chosen is not None else of_run
    facts = request.facts()
    kept = recorded_plan(target, facts, World())
    if kept is None:
        return _explained(request, profile, target.loaded)
    needs = needs_of(target.loaded.profile, None, facts)
    return Explained(profile, target.loaded, planned_with(kept, needs, facts), request.assumed)


def derived_values(profile: Profile, tokens_per_step: int) -> dict[str, Choice[Any]]:
    """What becomes of the `auto` of a shape and of learning rates."""
    shape, optim = shape_of(profile.model), profile.optim
    rates = peak_learning_rates(optim, shape.hidden_size, tokens_per_step)
    rule = f"by the rule for {tokens_per_step} tokens a step and width {shape.hidden_size}"
    head = "tied to the embedding" if profile.model.tie_embeddings else "the embedding's"
    candidates: dict[str, tuple[Any, Choice[Any]]] = {
        "model.num_kv_heads": (
            profile.model.num_kv_heads,
            Choice(shape.num_kv_heads, "as many as num_heads"),
        ),
        "model.head_dim": (
            profile.model.head_dim,
            Choice(shape.head_dim, "hidden_size ÷ num_heads"),
        ),
        "optim.learning_rate": (optim.learning_rate, Choice(rates["matrix"], rule)),
        "optim.embedding_learning_rate": (
            optim.embedding_learning_rate,
            Choice(rates["embedding"], rule if optim.name == "muon" else "as learning_rate"),
        ),
        "optim.head_learning_rate": (optim.head_learning_rate, Choice(rates["head"], head)),
    }
    return {path: choice for path, (value, choice) in candidates.items() if value == "auto"}


def _explained(request: TrainRequest, profile: Choice[str], loaded: LoadedProfile) -> Explained:
    facts, may_measure = request.facts(), request.assumed is None
    planned = plan_run(loaded.profile, facts=facts, measure=may_measure)
    return Explained(profile, loaded, planned, request.assumed)
