"""Find the run that a request means: a new one, or the one that `--resume` names.

`--resume auto` means the run in `--out`, or else the newest run of the same profile; where there is
none, a new run is started. The result has the run's directory, the checkpoint to resume from, the
profile and the facts of the machine.

A directory whose run.yaml has no checkpoint yet was left by a failed or interrupted start: a new
run may take its place. One whose run.yaml says that there were checkpoints is refused: without them
nothing continues it, and a new run in its place would erase what it recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from llmtrain.engine.initial_model import InitialModel, recorded_initial_model
from llmtrain.engine.request import ResolvedProfile, TrainRequest, resolve_profile
from llmtrain.engine.resume_settings import (
    RecordedRun,
    read_recorded,
    recorded_settings,
    resolve_horizon,
    resumed_profile,
)
from llmtrain.errors import UsageError
from llmtrain.profile.horizon import Horizon
from llmtrain.progress import Note
from llmtrain.train.checkpoint.format import SavedState, load_state, newest_good
from llmtrain.train.checkpoint.integrity import lacks_optimizer, verify_checkpoint
from llmtrain.train.checkpoint.names import (
    list_checkpoints,
    refuse_only_damaged,
    set_aside,
    step_of,
)
from llmtrain.train.checkpoint.writing import recover
from llmtrain.train.distributed.world import World, launcher_identity, was_restarted
from llmtrain.train.events import Observer
from llmtrain.train.run_directory.directory import RUN_FILE, RunDirectory
from llmtrain.train.run_directory.find import (
    all_runs,
    find_run,
    named_checkpoint,
    new_run_path,
    newest_run,
)


@dataclass(frozen=True, slots=True)
class ResolvedRun:
    """A run, new or resumed, with everything decided but its plan."""

    path: Path
    profile: ResolvedProfile
    horizon: Horizon
    command: tuple[str, ...] = ()
    checkpoint: Path | None = None  # to resume from, verified
    state: SavedState | None = None  # of that checkpoint
    recorded: RecordedRun | None = None  # run.yaml, if there is a checkpoint
    notes: tuple[str, ...] = ()  # to show before training

    @property
    def directory(self) -> RunDirectory:
        """The files of the run."""
        return RunDirectory(self.path)

    @property
    def initial_model(self) -> InitialModel | None:
        """The model that the run continues; None if it began with random weights."""
        if self.recorded is None:
            return self.profile.initial
        return recorded_initial_model(self.recorded.values)

    @property
    def has_new_horizon(self) -> bool:
        """True if a resumed run is to last longer than before."""
        return self.recorded is not None and self.recorded.horizon != self.horizon

    @property
    def is_finished(self) -> bool:
        """True if nothing is left to train."""
        state, steps = self.state, self.horizon.steps
        if state is None or not state.finished or self.has_new_horizon:
            return False
        # An older checkpoint may have ended the run before it was made longer.
        return steps is None or state.horizon_steps is None or state.horizon_steps >= steps


@dataclass(frozen=True, slots=True)
class _Place:
    """The directory that a request means, and the checkpoint if it names one."""

    directory: RunDirectory
    checkpoint: Path | None = None
    resumes: bool = True  # False: a new run
    profile: ResolvedProfile | None = None  # of a new run, if finding the place took it


@contextmanager
def resolve(request: TrainRequest, observe: Observer, world: World) -> Iterator[ResolvedRun]:
    """Lock the run directory that the request means, and yield what to train in it.

    Removes what a crash left half written there. Renames damaged checkpoints that are newer than
    the one to resume from, and with a named checkpoint all newer ones. Raises UsageError, and
    LlmtrainError where a checkpoint cannot be read or none is left.
    """
    place = _find(request, world)
    with place.directory.claimed():
        recover(place.directory.checkpoints)
        yield _resolved(request, place, world, set_aside, observe)


def preview(request: TrainRequest) -> ResolvedRun:
    """Return what `resolve` would; nothing is renamed, created or locked."""
    place = _find(request, None)
    return _resolved(request, place, None, lambda path, _: path, lambda _: None)


def _find(request: TrainRequest, world: World | None) -> _Place:
    """Return the directory of the run that the request means. Raises UsageError."""
    out = RunDirectory(request.out) if request.out is not None else None
    if out is not None:
        out.require_own_files()
        out.refuse_lost()
    resume = request.resume or _resumed_by_restart(out)
    if resume is None:
        if out is not None and out.has_saved_state:
            raise UsageError(
                f"--out {out.path} holds a run already",
                hint="add --resume auto to continue it, or choose another --out",
            )
        return _new_place(request, out, world)
    if resume == "auto":
        return _resumed_automatically(request, out, world)
    run = find_run(resume)
    run.refuse_lost()
    if out is not None and out.path.resolve() != run.path.resolve():
        raise UsageError(
            f"--resume {resume} continues in {run.path}, --out says {out.path}",
            hint="leave --out away",
        )
    return _Place(run, named_checkpoint(resume))


def _resumed_automatically(
    request: TrainRequest, out: RunDirectory | None, world: World | None
) -> _Place:
    """Apply `--resume auto`: `--out`, else the newest run of the profile, else a new run."""
    if out is None:
        profile = resolve_profile(request, world)
        newest = newest_run(profile.loaded.profile.name)
        if newest is None:
            return _new_place(request, None, world, profile)
        RunDirectory(newest).refuse_lost()
        return _Place(RunDirectory(newest))
    if out.exists:
        return _Place(out)
    if out.has_saved_state:
        raise UsageError(
            f"{out.path} has checkpoints, but no {RUN_FILE}, which says how to resume from them",
            hint="choose another --out",
        )
    return _new_place(request, out, world)


def _new_place(
    request: TrainRequest,
    out: RunDirectory | None,
    world: World | None,
    profile: ResolvedProfile | None = None,
) -> _Place:
    if out is not None:
        return _Place(out, resumes=False)
    profile = profile or resolve_profile(request, world)
    path = new_run_path(profile.loaded.profile.name, datetime.now().astimezone())
    return _Place(RunDirectory(path), resumes=False, profile=profile)


def _resumed_by_restart(out: RunDirectory | None) -> str | None:
    """Return the run that these ranks began before torchrun started them again."""
    if not was_restarted():
        return None
    if out is not None:
        return "auto"
    launcher = launcher_identity()
    own = [run.path for run in all_runs() if run.launcher() == launcher]
    return str(own[-1]) if own else None


def _resolved(
    request: TrainRequest,
    place: _Place,
    world: World | None,
    rename: Callable[[Path, str], Path],
    observe: Observer,
) -> ResolvedRun:
    directory = place.directory
    checkpoint = _checkpoint(place, rename, observe) if place.resumes else None
    if checkpoint is None:
        return _new_run(request, place, world)
    recorded, state = read_recorded(directory), load_state(checkpoint)
    profile = resumed_profile(request, recorded, directory, state.elapsed_s, world)
    return ResolvedRun(
        directory.path,
        profile,
        resolve_horizon(request, profile.loaded.profile, recorded),
        tuple(request.command),
        checkpoint,
        state,
        recorded,
    )


def _checkpoint(
    place: _Place, rename: Callable[[Path, str], Path], observe: Observer
) -> Path | None:
    """Return the checkpoint to resume from, verified; set damaged and superseded ones aside."""
    directory, named = place.directory.checkpoints, place.checkpoint
    if named is None:

        def set_damaged_aside(path: Path, problem: str) -> None:
            aside = rename(path, "damaged")
            text = f"damaged checkpoint: {problem}; renamed to {aside.name}"
            observe(Note(text, is_warning=True))

        refuse_only_damaged(directory)
        return newest_good(directory, set_damaged_aside)
    verify_checkpoint(named, with_optimizer=not lacks_optimizer(named))
    for path in list_checkpoints(directory):
        if step_of(path) > step_of(named):
            aside = rename(path, "superseded")
            observe(Note(f"{path.name} is newer than {named.name}; renamed to {aside.name}"))
    return named


def _new_run(request: TrainRequest, place: _Place, world: World | None) -> ResolvedRun:
    directory, base = place.directory, None
    if place.resumes and request.profile is None:  # as it was started before
        base = recorded_settings(read_recorded(directory), str(directory.path / RUN_FILE))
    profile = place.profile or resolve_profile(request, world, base)
    notes = list(profile.notes)
    if place.resumes:
        notes.append(f"{directory.path} has no checkpoint; starting fresh")
    elif request.profile is None and profile.initial is None:
        notes.append(f"profile {profile.name.value}: {profile.name.reason}")
    return ResolvedRun(
        directory.path,
        profile,
        resolve_horizon(request, profile.loaded.profile, None),
        tuple(request.command),
        notes=tuple(notes),
    )
