"""Where a request leads: a new run, or one that already exists and what may change in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from llmtrain.engine.request import Chosen, TrainRequest, choose, loaded_profile
from llmtrain.errors import UsageError
from llmtrain.profile.horizon import Horizon, horizon_of
from llmtrain.profile.load import (
    LoadedProfile,
    Setting,
    flat_values,
    load_profile,
    profile_from_values,
)
from llmtrain.profile.schema import Profile
from llmtrain.progress import Note
from llmtrain.train.checkpoint.format import (
    list_checkpoints,
    load_state,
    newest_good,
    set_aside,
    step_of,
    verify_checkpoint,
)
from llmtrain.train.checkpoint.writing import recover
from llmtrain.train.distributed.world import launcher_identity, was_restarted
from llmtrain.train.events import Observer
from llmtrain.train.run_directory.directory import (
    RunDirectory,
    all_runs,
    find_run,
    named_checkpoint,
    new_run_path,
    newest_run,
)

_MAY_DIFFER = (
    *("device.", "checkpoint.", "eval."),
    *("train.log_every_steps", "train.micro_batch", "train.skip_loss_spikes"),
)
_HORIZON = ("train.steps", "train.tokens", "train.epochs", "train.time")
_CHOSEN = "train.tokens_per_step"  # auto in a profile; a run has a number
_DELIBERATE = ("--", "argument ")  # origins that a call itself set


@dataclass(frozen=True, slots=True)
class Target:
    """Where a request leads: a new run, or one to continue from `checkpoint`."""

    directory: RunDirectory
    loaded: LoadedProfile
    horizon: Horizon
    checkpoint: Path | None
    record: Mapping[str, Any] | None  # run.yaml of the run that goes on


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run is or will be, the checkpoint it goes on from, or what a new one is."""

    directory: RunDirectory
    checkpoint: Path | None
    chosen: Chosen | None = None


def locate(request: TrainRequest, observe: Observer, held: ExitStack) -> Place:
    """Where the request leads. Raises UsageError, and DamagedCheckpointError where none is whole.

    The run directory is locked until `held` is closed. What a crash left in it is put right,
    damaged checkpoints on the way are renamed aside, and so are those newer than a named one.
    """
    existing = _existing_run(request)
    if existing is None:
        chosen = choose(request)
        if request.profile is None:
            observe(Note(f"profile {chosen.profile.value}: {chosen.profile.reason}"))
        profile = loaded_profile(request, chosen).profile
        path = request.out or new_run_path(profile.name, datetime.now().astimezone())
        directory = RunDirectory(path)
        held.enter_context(directory.claimed())
        return Place(directory, None, chosen)
    directory, named = existing
    held.enter_context(directory.claimed())
    recover(directory.checkpoints)
    if named is not None:
        verify_checkpoint(named)
        for path in list_checkpoints(directory.checkpoints):
            if step_of(path) > step_of(named):
                aside = set_aside(path, "superseded")
                observe(Note(f"{path.name} is newer than {named.name}; renamed to {aside.name}"))
        return Place(directory, named)
    found = newest_good(directory.checkpoints, _set_aside_damaged(observe))
    if found is None:
        observe(Note(f"{directory.path} has no checkpoint; starting fresh"))
    return Place(directory, found)


def preview(request: TrainRequest) -> Place:
    """Where the request would lead; nothing is verified, renamed or created."""
    existing = _existing_run(request)
    if existing is None:
        return Place(RunDirectory(request.out or Path("runs")), None, choose(request))
    directory, named = existing
    return Place(directory, named or next(reversed(list_checkpoints(directory.checkpoints)), None))


def target_at(request: TrainRequest, place: Place) -> Target:
    """What to do at a place. Reads only. Raises UsageError."""
    directory = place.directory
    if not directory.exists:
        loaded = loaded_profile(request, place.chosen)
        return Target(directory, loaded, _horizon(request, loaded, None), None, None)
    record = directory.read_record()
    used_s = load_state(place.checkpoint).elapsed_s if place.checkpoint is not None else 0.0
    loaded = _continued(request, record, directory, used_s)
    horizon = _horizon(request, loaded, record)
    if place.checkpoint is None:  # begun, and ended before it was first saved
        return Target(directory, loaded, horizon, None, None)
    return Target(directory, loaded, horizon, place.checkpoint, record)


def _set_aside_damaged(observe: Observer) -> Callable[[Path, str], None]:
    def on_damage(path: Path, problem: str) -> None:
        aside = set_aside(path, "damaged")
        observe(Note(f"damaged checkpoint: {problem}; renamed to {aside.name}", is_warning=True))

    return on_damage


def _existing_run(request: TrainRequest) -> tuple[RunDirectory, Path | None] | None:
    """The run to continue, and its checkpoint if one is named; None for a new run."""
    out = RunDirectory(request.out) if request.out is not None else None
    if out is not None:
        out.require_own_files()
    resume = request.resume or _resumed_by_restart(out)
    if resume is None:
        if out is not None and (out.exists or out.checkpoints.is_dir()):
            raise UsageError(
                f"--out {out.path} holds a run already",
                hint="add --resume auto to continue it, or choose another --out",
            )
        return None
    if resume == "auto":
        if out is not None:
            _refuse_orphans(out)
            return (out, None) if out.exists else None
        newest = newest_run(loaded_profile(request).profile.name)
        return (RunDirectory(newest), None) if newest is not None else None
    run = find_run(resume)
    if out is not None and out.path.resolve() != run.path.resolve():
        raise UsageError(
            f"--resume {resume} continues in {run.path}, --out says {out.path}",
            hint="leave --out away",
        )
    return run, named_checkpoint(resume)


def _resumed_by_restart(out: RunDirectory | None) -> str | None:
    """What ranks go on with that torchrun started again: the run that they began before."""
    if not was_restarted():
        return None
    if out is not None:
        return "auto"
    launcher = launcher_identity()
    own = [run.path for run in all_runs() if run.launcher() == launcher]
    return str(own[-1]) if own else None


def _refuse_orphans(out: RunDirectory) -> None:
    """A new run would thin out checkpoints that it finds. Raises UsageError."""
    if list_checkpoints(out.checkpoints) and not out.exists:
        raise UsageError(
            f"{out.path} has checkpoints, but no run.yaml that says how to go on from them",
            hint="choose another --out",
        )


def _continued(
    request: TrainRequest, record: Mapping[str, Any], directory: RunDirectory, used_s: float
) -> LoadedProfile:
    """The run's own profile with what may change and was changed on purpose."""
    origin = str(directory.path / "run.yaml")
    saved = profile_from_values(record["profile"], origin)
    said = dict(record.get("origins", {}))
    base = {p: Setting(v, said.get(p, origin)) for p, v in flat_values(saved.values())}
    named = request.profile
    asked = request.load(named, used_s) if named is not None else request.over(base, used_s)
    changes = _changes(saved, asked, said)
    refused = [p for p in changes if not p.startswith(_MAY_DIFFER) and p not in _HORIZON]
    if refused:
        path = refused[0]
        before = value_at(saved, path)
        raise UsageError(
            f"{path} is {before!r} in {directory.path} and {changes[path].value!r} now "
            f"({changes[path].origin}); a run goes on as it began",
            hint="start a new run with another --out",
        )
    return load_profile(base, environment={}, flags=changes)


def _changes(saved: Profile, asked: LoadedProfile, said: Mapping[str, str]) -> dict[str, Setting]:
    """What this command says otherwise than the run does.

    A value that the run got from a higher layer is not taken back by a lower one: a run begun
    with `--steps 50` goes on to 50 though its profile says 20.
    """
    changes = {}
    for path, origin in asked.origins.items():
        value = value_at(asked.profile, path)
        if path == "name" or value == value_at(saved, path):
            continue
        if path == _CHOSEN and value == "auto":
            continue
        group = _HORIZON if path in _HORIZON else (path,)  # one of which is set at a time
        if _height(origin) >= max(_height(said.get(p, "default")) for p in group):
            changes[path] = Setting(value, origin)
    return changes


def _height(origin: str) -> int:
    """How high the layer lies that an origin names."""
    if origin.startswith(_DELIBERATE):
        return 3
    if origin.startswith("environment "):
        return 2
    return 0 if origin == "default" else 1


def _horizon(
    request: TrainRequest, loaded: LoadedProfile, record: Mapping[str, Any] | None
) -> Horizon:
    horizon = horizon_of(loaded.profile.train)
    if horizon is None:
        raise UsageError(
            f"profile {loaded.profile.name} says not how long to train",
            hint="--steps 1000, --tokens 50M, --epochs 2 or --time 30m",
        )
    if request.deadline is not None:
        return replace(horizon, deadline_s=request.deadline.at_s)
    if record is not None:
        saved = horizon_of(profile_from_values(record["profile"], "run.yaml").train)
        _refuse_shorter(horizon, saved)
    return horizon


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
                f"the run was to last {theirs:g} {unit} and {ours:g} {unit} is shorter; "
                "a resume may only go on for longer",
                hint="leave the horizon away to finish the run as it was begun",
            )


def value_at(profile: Profile, path: str) -> Any:
    """The value of a dotted path."""
    value: Any = profile.model_dump(mode="json")
    for part in path.split("."):
        value = value[part]
    return value


def has_new_horizon(target: Target) -> bool:
    """Whether a run that goes on is to last longer than it was."""
    if target.record is None:
        return False
    then = profile_from_values(target.record["profile"], "run.yaml").train
    return horizon_of(then) != target.horizon
