"""What one call of `train` asks, and what a new run of it is."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmtrain.choice import Choice
from llmtrain.machine.assume import AssumedMachine
from llmtrain.machine.facts import Facts
from llmtrain.machine.probe import read_facts
from llmtrain.plan.auto_profile import choose_profile, choose_tokens_per_step, with_chosen_step
from llmtrain.plan.decisions import may_use_gpu
from llmtrain.profile.load import (
    LoadedProfile,
    Setting,
    load_profile,
    profile_layer,
)


@dataclass(frozen=True, slots=True)
class Deadline:
    """A clock time to be done by, and that from which a run's own time counts."""

    at_s: float
    from_s: float

    def setting(self, used_s: float) -> Setting:
        """The whole time of a run that has used so much of it before."""
        left_s = self.at_s - self.from_s
        return Setting(f"{max(1.0, left_s + used_s):.3f}s", "--time until")


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """One call of `train`, from the command line or from Python."""

    profile: str | None = None
    assignments: Sequence[str] = ()
    flags: Mapping[str, Setting] = field(default_factory=dict)
    out: Path | None = None
    resume: str | None = None  # auto, or what names a run
    deadline: Deadline | None = None  # in place of train.time
    command: Sequence[str] = ()
    assumed: AssumedMachine | None = None  # in place of this machine; then nothing is trained

    def facts(self) -> Facts:
        """The machine that is planned for."""
        if self.assumed is not None:
            return self.assumed.facts
        return read_facts(tries_gpus=may_use_gpu(self.load(self.profile).profile.device))

    def load(self, profile: str | None, used_s: float = 0.0) -> LoadedProfile:
        """All layers of this request over `profile`."""
        return self.over({} if profile is None else profile_layer(profile), used_s)

    def over(self, base: Mapping[str, Setting], used_s: float = 0.0) -> LoadedProfile:
        """All layers of this request over settings that stand in for a profile.

        `used_s`: the time that a run used before it goes on.
        """
        flags = dict(self.flags)
        if self.deadline is not None:
            flags["train.time"] = self.deadline.setting(used_s)
        return load_profile(base, environment=os.environ, assignments=self.assignments, flags=flags)


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a new run is where the request leaves it open: decided once, for all ranks."""

    profile: Choice[str]
    tokens_per_step: Choice[int]

    def document(self) -> dict[str, tuple[Any, str]]:
        """Both as JSON holds them."""
        steps = self.tokens_per_step
        return {
            "profile": (self.profile.value, self.profile.reason),
            "tokens_per_step": (steps.value, steps.reason),
        }

    @classmethod
    def from_document(cls, document: Mapping[str, tuple[Any, str]]) -> Chosen:
        """What `document` wrote."""
        return cls(Choice(*document["profile"]), Choice(*document["tokens_per_step"]))


def choose(request: TrainRequest) -> Chosen:
    """What the machine makes of the request. Raises UsageError."""
    facts, may_measure = request.facts(), request.assumed is None
    if request.profile is not None:
        choice = Choice(request.profile, "asked for")
    else:
        bare = request.load(None).profile
        choice = choose_profile(facts, bare.device, bare.train.time, measure=may_measure)
    profile = request.load(choice.value).profile
    return Chosen(choice, choose_tokens_per_step(profile, facts, measure=may_measure))


def loaded_profile(request: TrainRequest, chosen: Chosen | None = None) -> LoadedProfile:
    """The profile of a new run, with nothing left to choose but by its plan. Raises UsageError."""
    found = chosen or choose(request)
    return with_chosen_step(request.load(found.profile.value), found.tokens_per_step)
