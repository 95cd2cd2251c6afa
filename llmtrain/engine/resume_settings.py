"""Decide which settings may change when a run is resumed, by what its run.yaml records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from llmtrain.choice import Choice
from llmtrain.engine.request import ResolvedProfile, TrainRequest
from llmtrain.errors import UsageError
from llmtrain.machine.facts import Facts
from llmtrain.plan.planner import Plan, plan_from_document
from llmtrain.profile.horizon import Horizon, horizon_of
from llmtrain.profile.load import LoadedProfile, flat_values, load_profile, profile_from_values
from llmtrain.profile.schema import DeviceSection, Profile
from llmtrain.profile.setting import Layer, Setting, layer_of
from llmtrain.train.distributed.world import World
from llmtrain.train.run_directory.directory import RUN_FILE, RunDirectory

_MAY_DIFFER = (
    *("device.", "checkpoint.", "eval."),
    *("train.log_every_steps", "train.micro_batch", "train.skip_loss_spikes"),
    *("log_to", "report"),
)
_HORIZON = ("train.steps", "train.tokens", "train.epochs", "train.time")
_SOURCES = "data.sources"  # the same text may be somewhere else now
# "auto" in a profile, a number in a run.
_CHOSEN = ("train.tokens_per_step", "train.sync_every")


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """run.yaml of a run that is resumed, and the profile in it."""

    values: dict[str, Any]
    profile: Profile

    @property
    def horizon(self) -> Horizon | None:
        """The recorded horizon of the run."""
        return horizon_of(self.profile.train)

    @property
    def plan(self) -> Plan | None:
        """The recorded plan; None where there is none that this llmtrain could have made."""
        return plan_in(self.values)

    @property
    def forecast(self) -> Mapping[str, Any] | None:
        """The forecast of the run's first session."""
        found: Mapping[str, Any] | None = self.values.get("forecast")
        return found

    @property
    def text_fingerprint(self) -> str | None:
        """The sha256 of the run's text; None in a run.yaml that does not have it."""
        found: str | None = (self.values.get("data") or {}).get("corpus_sha256")
        return found

    def data_may_have_moved(self, profile: Profile) -> bool:
        """Return whether `profile` may name the run's text in another place.

        Whether it is the same text is known when it is read.
        """
        same_weights = profile.data.weights == self.profile.data.weights
        return same_weights and self.text_fingerprint is not None

    def usable_plan(self, profile: Profile, facts: Facts, world: World) -> Plan | None:
        """Return the recorded plan if machine, options and processes are what they were."""
        if self.values.get("machine") != machine_signature(facts):
            return None
        plan = self.plan
        if plan is None or _plan_options(self.profile) != _plan_options(profile):
            return None
        if plan.sharding.value == "hybrid" and not self._was_launched_as(world):
            return None
        processes = world.size if world.size > 1 else plan.processes.value
        return plan if plan.processes.value == processes else None

    def _was_launched_as(self, world: World) -> bool:
        """Return whether the last session's ranks were on as many machines, and as many on each."""
        ranks = (self.values.get("sessions") or [{}])[-1].get("ranks") or {}
        machines = [world.local_size] * (world.size // world.local_size)
        return world.has_equal_machines and ranks.get("of_machines") == machines


def read_recorded(directory: RunDirectory) -> RecordedRun:
    """Return what run.yaml says. Raises UsageError where it cannot be read or is incomplete."""
    file = directory.path / RUN_FILE
    hint = "put a copy of it back, or start anew with another --out"
    try:
        values = directory.read_record()
        profile = profile_from_values(values["profile"], str(file))
    except UsageError as error:
        raise UsageError(error.message, hint=error.hint or hint) from None
    if not values.get("sessions"):  # written last, so that it is missing where the file was cut
        raise UsageError(f"{file} is incomplete: it names no session of the run", hint=hint)
    return RecordedRun(values, profile)


def plan_in(record: Mapping[str, Any]) -> Plan | None:
    """Return the plan of run.yaml, or None where there is none that can be carried out."""
    try:
        return plan_from_document(record["plan"])
    except (KeyError, TypeError, ValueError):
        return None


def machine_signature(facts: Facts) -> dict[str, Any]:
    """Return what must be equal for a recorded plan to compute the same bits."""
    return {
        "cpu": facts.cpu.model,
        "isa": list(facts.cpu.isa),
        "accelerators": [gpu.name for gpu in facts.accelerators],
        "torch": facts.torch_version,
    }


def recorded_settings(recorded: RecordedRun, origin: str) -> dict[str, Setting]:
    """Return the recorded profile as settings, each with its first origin."""
    origins = recorded.values.get("origins", {})
    values = flat_values(recorded.profile.values())
    return {path: Setting(value, origins.get(path, origin)) for path, value in values}


def resumed_profile(
    request: TrainRequest,
    recorded: RecordedRun,
    directory: RunDirectory,
    used_s: float,
    world: World | None,
) -> ResolvedProfile:
    """Return the run's own profile with what the request changes in it.

    Raises UsageError for a change that would make it another run.
    """
    base = recorded_settings(recorded, str(directory.path / RUN_FILE))
    loaded = _changed(request, recorded, base, directory, used_s)
    name = Choice(loaded.profile.name, f"of the run in {directory.path}")
    facts = request.read_facts(loaded.profile.device, world)
    return ResolvedProfile(loaded, name, facts, request.assumed)


def resolve_horizon(
    request: TrainRequest, profile: Profile, recorded: RecordedRun | None
) -> Horizon:
    """Return how long the run is to last. Raises UsageError for none, or a shorter one."""
    horizon = horizon_of(profile.train)
    if horizon is None:
        raise UsageError(
            f"profile {profile.name} does not say how long to train",
            hint="--steps 1000, --tokens 50M, --epochs 2 or --time 30m",
        )
    if request.deadline is not None:
        return replace(horizon, deadline_s=request.deadline.at_s)
    if recorded is not None:
        _refuse_shorter(horizon, recorded.horizon)
    return horizon


def _plan_options(profile: Profile) -> tuple[DeviceSection, int | str]:
    """Return the options that a plan depends on."""
    device = profile.device.model_copy(update={"collective_timeout": 0.0})
    return device, profile.train.micro_batch


def _changed(
    request: TrainRequest,
    recorded: RecordedRun,
    base: Layer,
    directory: RunDirectory,
    used_s: float,
) -> LoadedProfile:
    named, saved = request.profile, recorded.profile
    asked = request.load(named, used_s) if named is not None else request.over(base, used_s)
    origins = {path: setting.origin for path, setting in base.items()}
    changes = _changes(saved, asked, origins)
    refused = [p for p in changes if not p.startswith(_MAY_DIFFER) and p not in _HORIZON]
    if _SOURCES in refused and recorded.data_may_have_moved(asked.profile):
        refused.remove(_SOURCES)
    if refused:
        path = refused[0]
        raise UsageError(
            f"{path} is {value_at(saved, path)!r} in {directory.path} and "
            f"{changes[path].value!r} now ({changes[path].origin}); "
            "a resumed run keeps what it was started with",
            hint="start a new run with another --out",
        )
    if not changes:
        return LoadedProfile(saved, origins)
    return load_profile(base, environment={}, flags=changes)


def _changes(
    saved: Profile, asked: LoadedProfile, origins: Mapping[str, str]
) -> dict[str, Setting]:
    """Return the settings that the request changes.

    A lower layer does not take back what a higher one set: a run started with `--steps 50`
    continues to 50 though its profile says 20.
    """
    changes = {}
    for path, origin in asked.origins.items():
        value = value_at(asked.profile, path)
        if path == "name" or value == value_at(saved, path):
            continue
        if path in _CHOSEN and value == "auto":
            continue
        group = _HORIZON if path in _HORIZON else (path,)  # one of which is set at a time
        if layer_of(origin) >= max(layer_of(origins.get(p, "default")) for p in group):
            changes[path] = Setting(value, origin)
    return changes


def _refuse_shorter(now: Horizon, then: Horizon | None) -> None:
    if then is None:
        return
    for ours, theirs, unit in (
        (now.steps, then.steps, "steps"),
        (now.epochs, then.epochs, "epochs"),
        (now.time_s, then.time_s, "s"),
    ):
        if ours is not None and theirs is not None and ours < theirs:
            raise UsageError(
                f"the run was started for {theirs:g} {unit}, and {ours:g} {unit} is shorter; "
                "a resumed run can only be made longer",
                hint="leave the horizon out to finish the run as it was started",
            )


def value_at(profile: Profile, path: str) -> Any:
    """Return the value of a dotted path."""
    value: Any = profile.model_dump(mode="json")
    for part in path.split("."):
        value = value[part]
    return value
