"""`runs prove-resume`: compare a killed and resumed run with an uninterrupted one."""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from llmtrain.engine.prove_resume.kill import (
    Kill,
    TrainProcess,
    kill_at,
    median_phase_s,
    plan_kills,
    start_training,
)
from llmtrain.engine.prove_resume.observe import Phase, Watch
from llmtrain.engine.request import TrainRequest, resolve_profile
from llmtrain.errors import LlmtrainError
from llmtrain.files import cache_directory
from llmtrain.profile.load import profile_from_values
from llmtrain.profile.schema import Profile
from llmtrain.progress import Note
from llmtrain.train.checkpoint.format import load_state, optimizer_sha256, weights_sha256
from llmtrain.train.checkpoint.names import list_checkpoints
from llmtrain.train.events import Observer
from llmtrain.train.run_directory.directory import RunDirectory
from llmtrain.units import counted, format_duration

_EVALUATE_EVERY, _SAMPLE_EVERY = 2, 3  # steps, so that kills fall there too
_EVALUATED_TOKENS, _SAMPLED_TOKENS = 4096, 16
_REPRODUCIBLE = ("step", "tokens", "loss", "lr", "grad_norm", "val_loss", "val_bpb")
_MEASUREMENTS = "probe"  # the directory of the cache with the measurements of this machine


@dataclass(frozen=True, slots=True)
class RunResult:
    """The result of a finished run."""

    model_sha256: str
    optimizer_sha256: str
    course: tuple[dict[str, Any], ...]  # logged values that do not depend on time, and samples
    numerics: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Proof:
    """The comparison of two trainings of one profile, of which one was killed and resumed."""

    steps: int
    processes: int
    kills: tuple[Kill, ...]
    uninterrupted: RunResult
    interrupted: RunResult
    uninterrupted_s: float
    interrupted_s: float

    @property
    def resumes_from_checkpoint(self) -> int:
        """The number of resumes from a checkpoint; the others started anew."""
        return sum(kill.after_checkpoint for kill in self.kills)

    @property
    def is_equal(self) -> bool:
        """True if weights, optimizer state and logged values are bitwise equal."""
        return self.uninterrupted == self.interrupted

    @property
    def first_difference(self) -> str | None:
        """The first difference, for people; None if there is none."""
        one, other = self.uninterrupted, self.interrupted
        if one.numerics != other.numerics:
            return f"the plans: {one.numerics} and {other.numerics}"
        for ours, theirs in zip(one.course, other.course, strict=False):
            if ours != theirs:
                return f"{ours} and {theirs}"
        if len(one.course) != len(other.course):
            return f"{len(one.course)} and {len(other.course)} logged values"
        if one.model_sha256 != other.model_sha256:
            return "the weights"
        return "the optimizer's state" if one != other else None


@dataclass(frozen=True, slots=True)
class ProofOptions:
    """The number of kills and steps of a proof. Equal seeds give equal kill targets."""

    kills: int
    steps: int
    seed: int


def prove_resume(
    request: TrainRequest, options: ProofOptions, observe: Observer, check: Callable[[], None]
) -> Proof:
    """Train the request's profile twice in a temporary directory, and compare the results.

    The first training is uninterrupted, the second is killed and resumed. `check` may raise to
    stop. Raises LlmtrainError if a training fails by itself.
    """
    profile = proof_profile(request, options.steps)
    with tempfile.TemporaryDirectory(prefix="llmtrain-proof-") as directory:
        pair = _TrainingPair(Path(directory), profile, options, observe, check)
        lengths, uninterrupted_s = pair.train_whole()
        kills, interrupted_s = pair.train_killed(lengths)
        return Proof(
            steps=options.steps,
            processes=pair.processes(),
            kills=tuple(kills),
            uninterrupted=_result(pair.run("whole")),
            interrupted=_result(pair.run("killed")),
            uninterrupted_s=uninterrupted_s,
            interrupted_s=interrupted_s,
        )


def proof_profile(request: TrainRequest, steps: int) -> Profile:
    """Return the request's profile for `steps` steps, saved after each and evaluated often."""
    values = resolve_profile(request).loaded.profile.values()
    for horizon in ("steps", "tokens", "epochs", "time"):
        values["train"].pop(horizon, None)
    values["train"] |= {"steps": steps, "log_every_steps": 1}
    values["checkpoint"] = {"every_steps": 1, "keep_last": 1, "keep_best": True}
    options = values["eval"]
    options.pop("patience", None)
    options |= {
        "every_steps": _EVALUATE_EVERY,
        "tokens": min(options["tokens"], _EVALUATED_TOKENS),
        "sample_every_steps": _SAMPLE_EVERY,
        "sample_tokens": min(options["sample_tokens"], _SAMPLED_TOKENS),
    }
    return profile_from_values(values, "the profile to verify")


class _TrainingPair:
    """Two run directories, each with its own cache, so that both prepare their data."""

    def __init__(
        self,
        directory: Path,
        profile: Profile,
        options: ProofOptions,
        observe: Observer,
        check: Callable[[], None],
    ) -> None:
        self._directory = directory
        self._profile = profile
        self._options = options
        self._observe = observe
        self._check = check
        self._file = directory / "profile.yaml"
        self._write_profile(profile.values())

    def run(self, name: str) -> RunDirectory:
        """Return the run directory of a training."""
        return RunDirectory(self._directory / name)

    def processes(self) -> int:
        """Return the number of processes in the plan."""
        return int(self.run("whole").read_record()["plan"]["processes"]["value"])

    def train_whole(self) -> tuple[dict[Phase, float], float]:
        """Train uninterrupted; return the median seconds of each phase, and of all."""
        options = self._options
        self._note(
            f"training {options.steps} steps twice in {self._directory}: once uninterrupted, "
            f"once killed {counted(options.kills, 'time')}"
        )
        self._copy_measurements(cache_directory(), self._cache("whole"))
        started_s = time.monotonic()
        watch, training = self._start("whole")
        try:
            lengths = median_phase_s(training, watch, self._check)
            training.require_success()
        finally:
            training.end()
        return lengths, time.monotonic() - started_s

    def _write_profile(self, values: dict[str, Any]) -> None:
        self._file.write_text(yaml.safe_dump(values), encoding="utf-8", newline="\n")

    def _keep_rounds(self) -> None:
        """Let the second training take rounds as long as the first one chose them."""
        values, recorded = self._profile.values(), self.run("whole").read_record()["profile"]
        values["train"]["sync_every"] = recorded["train"]["sync_every"]
        self._write_profile(values)

    def train_killed(self, lengths: dict[Phase, float]) -> tuple[list[Kill], float]:
        """Train with kills and resumes to the end; return the kills and the seconds it took."""
        self._note_cost(lengths)
        self._copy_measurements(self._cache("whole"), self._cache("killed"))
        self._keep_rounds()
        rng = random.Random(self._options.seed)
        targets = plan_kills(list(lengths), self._options.kills, self._options.steps, rng)
        kills: list[Kill] = []
        started_s = time.monotonic()
        while True:
            watch, training = self._start("killed")
            try:
                target = targets[len(kills)] if len(kills) < len(targets) else None
                kill = None
                if target is not None:
                    length_s = lengths.get(target.phase, lengths.get("start-up", 0.0))
                    kill = kill_at(training, watch, target, length_s, rng, self._check)
                if kill is None:
                    self._wait(training)
                    return kills, time.monotonic() - started_s
            finally:
                training.end()
            kills.append(kill)
            self._note(f"kill {len(kills)}: {kill.victim}, in {kill.phase}, after step {kill.step}")

    def _start(self, name: str) -> tuple[Watch, TrainProcess]:
        run, cache = self.run(name), self._cache(name)
        watch = Watch(run, cache, self._profile.eval, self._options.steps)
        command = ["train", "-p", str(self._file), "--out", str(run.path), "--resume", "auto", "-q"]
        return watch, start_training(command, cache, self._directory / f"{name}.log")

    def _wait(self, training: TrainProcess) -> None:
        while not training.has_ended:
            self._check()
            time.sleep(0.05)
        training.require_success()

    def _cache(self, name: str) -> Path:
        return self._directory / f"cache-{name}"

    def _copy_measurements(self, source: Path, cache: Path) -> None:
        """Copy the measurements of this machine, so that both trainings have the same plan."""
        cache.mkdir()
        if (source / _MEASUREMENTS).is_dir():
            shutil.copytree(source / _MEASUREMENTS, cache / _MEASUREMENTS)

    def _note_cost(self, lengths: dict[Phase, float]) -> None:
        per_kill_s = sum(lengths.values())
        whole_s = self._options.kills * per_kill_s
        kills = counted(self._options.kills, "kill")
        self._note(f"about {format_duration(whole_s)} more for {kills}")

    def _note(self, text: str) -> None:
        self._observe(Note(text))


def _result(run: RunDirectory) -> RunResult:
    """Return the result of a run. Raises LlmtrainError if it is not finished."""
    newest = next(reversed(list_checkpoints(run.checkpoints)), None)
    if newest is None or not load_state(newest).finished:
        raise LlmtrainError(f"{run.path} ended before it was finished")
    lines = [{n: m[n] for n in _REPRODUCIBLE if n in m} for m in run.read_metrics()]
    return RunResult(
        weights_sha256(newest),
        optimizer_sha256(newest),
        (*lines, *run.read_samples()),
        load_state(newest).numerics,
    )
