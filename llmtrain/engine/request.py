"""One call of `train`, and the profile that its settings and this machine resolve to."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Literal

from llmtrain.choice import Choice
from llmtrain.engine.initial_model import InitialModel, continue_from
from llmtrain.engine.measure_apart import ProfileTask, Task, measure_apart, plan_task
from llmtrain.engine.rows_kind import with_kind_of_rows
from llmtrain.errors import UsageError
from llmtrain.machine.assume import AssumedMachine
from llmtrain.machine.facts import Facts
from llmtrain.machine.probe import read_facts, visible_cuda_devices
from llmtrain.plan.auto_profile import (
    choose_finetuning_profile,
    choose_profile,
    choose_tokens_per_step,
    with_chosen_step,
)
from llmtrain.plan.decisions import may_use_gpu
from llmtrain.plan.kernel_probes import Announce
from llmtrain.profile.load import (
    LoadedProfile,
    load_section,
    merge_layers,
    profile_layer,
    profile_name,
    validate_profile,
)
from llmtrain.profile.schema import DeviceSection, ModelSection, TrainSection
from llmtrain.profile.setting import INIT_FROM, Layer, Setting
from llmtrain.train.distributed.world import World

Purpose = Literal["train", "finetune"]


@dataclass(frozen=True, slots=True)
class Deadline:
    """A clock time at which to be done, and the time from which the run's own time counts."""

    at_s: float
    from_s: float

    def setting(self, used_s: float) -> Setting:
        """Return `train.time` of a run whose earlier sessions used `used_s`."""
        left_s = self.at_s - self.from_s
        return Setting(f"{max(1.0, left_s + used_s):.3f}s", "--time until")


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """One call of `train`, from the command line or from Python."""

    profile: str | None = None
    assignments: Sequence[str] = ()
    flags: Mapping[str, Setting] = field(default_factory=dict)
    out: Path | None = None
    resume: str | None = None  # "auto", or a run's or a checkpoint's name or path
    deadline: Deadline | None = None  # replaces train.time
    command: Sequence[str] = ()
    assumed: AssumedMachine | None = None  # plan for this machine; nothing is trained
    purpose: Purpose = "train"  # which profile is chosen where none is named
    announce: Announce | None = None  # of a run that is about to start: told what is measured
    measures: bool = True  # False: for a run that will not train

    @property
    def may_measure(self) -> bool:
        """True if this machine may be timed."""
        return self.measures and self.assumed is None

    def load(self, profile: str | None, used_s: float = 0.0) -> LoadedProfile:
        """Return `profile` with the request's settings over it. Raises UsageError."""
        return self.over({} if profile is None else profile_layer(profile), used_s)

    def over(self, base: Layer, used_s: float = 0.0) -> LoadedProfile:
        """Return the settings of `base` with the request's over them. Raises UsageError.

        `used_s`: seconds that earlier sessions of the run used.
        """
        return validate_profile(self._merged(base, used_s))

    def read_facts(self, options: DeviceSection, world: World | None = None) -> Facts:
        """Return the facts of the assumed machine, or read those of this one.

        Trying a GPU takes some of its memory for as long as the process lives. A rank tries its
        own one; a process in no group that sees several tries none: it may only launch the ranks.
        With no `world` nothing will be trained, and all are tried.
        """
        if self.assumed is not None:
            return self.assumed.facts
        tries_gpus = may_use_gpu(options)
        if world is None:
            return read_facts(tries_gpus=tries_gpus)
        if world.size > 1:
            return read_facts(cuda_index=world.local_rank, tries_gpus=tries_gpus)
        return read_facts(tries_gpus=tries_gpus and visible_cuda_devices() <= 1)

    def _merged(self, base: Layer, used_s: float = 0.0) -> dict[str, Setting]:
        flags = dict(self.flags)
        if self.deadline is not None:
            flags["train.time"] = self.deadline.setting(used_s)
        return merge_layers(base, os.environ, self.assignments, flags)

    def initial_model(self) -> str | None:
        """Return the model that the request itself says to continue. Raises UsageError."""
        return load_section(ModelSection, "model", self._merged({})).init_from

    def choose_profile(self, world: World | None = None) -> tuple[Choice[str], Facts]:
        """Return the shipped profile for this machine and the time there is. Raises UsageError."""
        merged = self._merged({})
        options = load_section(DeviceSection, "device", merged)
        facts = self.read_facts(options, world)
        if self.purpose == "finetune":
            return choose_finetuning_profile(facts, options), facts
        time_s = load_section(TrainSection, "train", merged).time
        self.measure_apart(ProfileTask(facts, options, time_s))
        return choose_profile(facts, options, time_s, measure=self.may_measure), facts

    def measure_apart(self, task: Task) -> bool:
        """Measure for a run that is about to start here; return whether there was anything to."""
        if self.announce is None or not self.may_measure:
            return False
        return measure_apart(task, self.announce)


@dataclass(frozen=True, slots=True)
class ResolvedProfile:
    """A profile in which only the plan is left to decide, and the machine it is for."""

    loaded: LoadedProfile
    name: Choice[str]
    facts: Facts
    assumed: AssumedMachine | None = None  # the machine of `facts`, unless it is this one
    initial: InitialModel | None = None  # of a new run that continues a model
    notes: tuple[str, ...] = ()  # on that model
    was_measured_apart: bool = False  # just now, in another process


def resolve_profile(
    request: TrainRequest, world: World | None = None, base: Layer | None = None
) -> ResolvedProfile:
    """Return the profile of a new run. Raises UsageError.

    Where the request names none, it is made from the settings in `base`, or else chosen for the
    machine. The profile is validated once and the machine probed once. A model to continue sets
    shape and tokenizer.
    """
    is_unnamed = request.profile is None and base is None
    spec = request.initial_model() if is_unnamed and request.purpose == "train" else None
    if spec is not None:
        base = {"name": Setting(profile_name(PurePath(spec).name), INIT_FROM + spec)}
    if request.profile is None and base is None:
        name, facts = request.choose_profile(world)
        loaded = request.load(name.value)
    else:
        loaded = request.load(request.profile) if request.profile else request.over(base or {})
        name = Choice(loaded.profile.name, "asked for")
        facts = request.read_facts(loaded.profile.device, world)
    if request.purpose == "finetune":
        loaded = with_kind_of_rows(loaded)
    if loaded.profile.data.has_conversations and loaded.profile.model.init_from is None:
        rows, origin = loaded.profile.data.rows, loaded.origin_of("data.rows")
        raise UsageError(
            f"data.rows is {rows} ({origin}), and no model is named to fine-tune",
            hint="llmtrain finetune RUN --data FILE",
        )
    initial, notes = None, tuple[str, ...]()
    if loaded.profile.model.init_from is not None:
        continued = continue_from(loaded.profile.model.init_from, loaded)
        loaded, initial, notes = continued.loaded, continued.model, continued.notes
    train, was_measured = loaded.profile.train, False
    if train.tokens_per_step == "auto" and train.time is not None:  # else the plan measures
        was_measured = request.measure_apart(plan_task(facts, loaded.profile, world))
    tokens_per_step = choose_tokens_per_step(loaded.profile, facts, measure=request.may_measure)
    loaded = with_chosen_step(loaded, tokens_per_step)
    return ResolvedProfile(loaded, name, facts, request.assumed, initial, notes, was_measured)
