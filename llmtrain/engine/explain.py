"""A resolved profile with its plan: every value with its origin, every decision with its reason.

Every command that shows a plan shows this.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llmtrain.choice import Choice
from llmtrain.engine.find_run import preview
from llmtrain.engine.plan_run import plan_resolved, plan_run
from llmtrain.engine.request import ResolvedProfile, TrainRequest, resolve_profile
from llmtrain.machine.assume import AssumedMachine
from llmtrain.machine.out_of_memory import memory_errors_mapped
from llmtrain.plan.forecast import Forecast, forecast
from llmtrain.plan.inference_memory import predict_evaluation, predict_generation
from llmtrain.plan.memory import MemoryPrediction
from llmtrain.plan.planned import Planned
from llmtrain.profile.load import LoadedProfile, flat_values
from llmtrain.profile.setting import CHOSEN
from llmtrain.profile.shape import shape_of
from llmtrain.recipe.learning_rate import CONTINUED_SHARE, DPO_SHARE, peak_learning_rates

PLAN = "plan"  # the origin of a decision that nobody asked for
_OPTIONS = {  # the profile's key for a decision of the plan
    "device": "device.kind",
    "precision": "device.precision",
    "processes": "device.processes",
    "sharding": "device.sharding",
    "sync_every": "train.sync_every",
    "threads": "device.threads",
    "numa_binding": "device.numa_binding",
    "micro_batch": "train.micro_batch",
    "attention": "device.attention",
    "loss": "device.loss",
    "block_kernels": "device.block_kernels",
    "compile": "device.compile",
    "activation_checkpointing": "device.activation_checkpointing",
    "backend": "device.backend",
    "workers": "device.workers",
    "pin_memory": "device.pin_memory",
}


@dataclass(frozen=True, slots=True)
class Explained:
    """A profile and its plan, with the origin or reason of every value."""

    resolved: ResolvedProfile
    planned: Planned

    @property
    def profile(self) -> Choice[str]:
        """The profile's name, and why it is this one."""
        return self.resolved.name

    @property
    def loaded(self) -> LoadedProfile:
        """The profile, with the origin of every value."""
        return self.resolved.loaded

    @property
    def assumed(self) -> AssumedMachine | None:
        """The machine that is planned for, unless it is this one."""
        return self.resolved.assumed

    @property
    def forecast(self) -> Forecast:
        """Steps, tokens, time and loss to expect of the run."""
        return forecast(self.loaded.profile, self.planned)

    def uses(self) -> dict[str, MemoryPrediction]:
        """Return the peak memory of evaluation and generation with the trained model."""
        workload, plan = self.planned.workload, self.planned.plan
        what = workload.shape, plan.device.value
        is_half, build = plan.precision.value != "fp32", workload.torch_build
        return {
            "evaluation": predict_evaluation(*what, half_precision=is_half, torch_build=build),
            "generation": predict_generation(*what, half_precision=is_half, torch_build=build),
        }

    def settings(self) -> Iterator[tuple[str, Any, str]]:
        """Yield every value of the profile: its dotted key, the value, and its origin."""
        for path, value in self._values().items():
            yield path, value, self.loaded.origin_of(path)

    def decisions(self) -> Iterator[tuple[str, Choice[Any], str]]:
        """Yield every decision of the plan: its name, the choice, and its origin, or `plan`."""
        for name, choice in self.planned.plan.choices():
            yield name, choice, self._origin_of(name)

    def derived(self) -> dict[str, Choice[Any]]:
        """Return what each `auto` that is no decision of the plan is resolved to."""
        profile, tokens_per_step = self.loaded.profile, self.planned.workload.tokens_per_step
        shape, optim = shape_of(profile.model), profile.optim
        continues = profile.model.init_from is not None
        is_dpo = profile.data.rows == "preferences"
        rates = peak_learning_rates(
            optim, shape.hidden_size, tokens_per_step, continues=continues, is_dpo=is_dpo
        )
        rule = f"by the rule for {tokens_per_step} tokens per step and width {shape.hidden_size}"
        if continues:
            rule += f", times {CONTINUED_SHARE:g} for a model that is continued"
        if is_dpo:
            rule += f" and {DPO_SHARE:g} for preferences"
        embedding = rule if optim.name == "muon" else "the hidden matrices'"
        return self._for_auto(
            {
                "model.num_kv_heads": Choice(shape.num_kv_heads, "as many as num_heads"),
                "model.head_dim": Choice(shape.head_dim, "hidden_size ÷ num_heads"),
                "optim.learning_rate": Choice(rates["matrix"], rule),
                "optim.embedding_learning_rate": Choice(rates["embedding"], embedding),
                "optim.head_learning_rate": Choice(rates["head"], "the embedding's"),
                "optim.outer_learning_rate": Choice(
                    optim.chosen_outer_learning_rate, f"of rounds, with {optim.name} inside"
                ),
            }
        )

    def decided(self) -> dict[str, Choice[Any]]:
        """Return what every `auto` of the profile is resolved to, by its dotted key."""
        plan = dict(self.planned.plan.choices())
        by_plan = self._for_auto({path: plan[name] for name, path in _OPTIONS.items()})
        return by_plan | self.derived()

    def _origin_of(self, decision: str) -> str:
        if decision == "device" and self.loaded.profile.device.force_cpu:
            return self.loaded.origin_of("device.force_cpu")
        path = _OPTIONS.get(decision)
        if path is None or self._values()[path] == "auto":
            return PLAN
        origin = self.loaded.origin_of(path)
        return PLAN if origin == "default" or origin.startswith(CHOSEN) else origin

    def _for_auto(self, choices: dict[str, Choice[Any]]) -> dict[str, Choice[Any]]:
        values = self._values()
        return {path: choice for path, choice in choices.items() if values[path] == "auto"}

    def _values(self) -> dict[str, Any]:
        return dict(flat_values(self.loaded.profile.values()))


def explain(request: TrainRequest) -> Explained:
    """Return what a new run of the request would be, on this machine or an assumed one.

    Raises UsageError and DoesNotFitError.
    """
    resolved = resolve_profile(request)
    is_here = request.assumed is None
    planned = plan_run(resolved.loaded.profile, facts=resolved.facts, measure=is_here)
    return Explained(resolved, planned)


@memory_errors_mapped()
def explain_run(request: TrainRequest) -> Explained:
    """Return what the request would train: a new run, or a resumed one. Changes nothing."""
    resolved = preview(request)
    return Explained(resolved.profile, plan_resolved(resolved))
