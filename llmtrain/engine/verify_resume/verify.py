"""Whether an interrupted run ends as an uninterrupted one: tried, on a user's own profile."""

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

from llmtrain.engine.request import TrainRequest, resolve_profile
from llmtrain.engine.verify_resume.kill import (
    Kill,
    TrainProcess,
    kill_at,
    lengths_of,
    plan_kills,
    started,
)
from llmtrain.engine.verify_resume.observe import Phase, Watch
from llmtrain.errors import LlmtrainError
from llmtrain.files import cache_directory, sha256_file
from llmtrain.profile.load import profile_from_values
from llmtrain.profile.schema import Profile
from llmtrain.progress import Note
from llmtrain.train.checkpoint.format import MODEL, OPTIMIZER, list_checkpoints, load_state
from llmtrain.train.events import Observer
from llmtrain.train.run_directory.directory import RunDirectory
from llmtrain.units import format_duration

_EVALUATE_EVERY, _SAMPLE_EVERY = 2, 3  # steps, so that kills strike there too
_EVALUATED_TOKENS, _SAMPLED_TOKENS = 4096, 16
_TIMELESS = ("step", "tokens", "loss", "lr", "grad_norm", "val_loss", "val_bpb")
_KEPT_PROBES = "probe"  # of the cache: what the machine was measured to do


@dataclass(frozen=True, slots=True)
class Ending:
    """What a finished run has to show."""

    model_sha256: str
    optimizer_sha256: str
    course: tuple[dict[str, Any], ...]  # logged values that no clock decides, and samples
    numerics: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Proof:
    """Two trainings of one profile, one of which was killed now and then."""

    steps: int
    processes: int
    kills: tuple[Kill, ...]
    uninterrupted: Ending
    interrupted: Ending
    uninterrupted_s: float
    interrupted_s: float

    @property
    def is_equal(self) -> bool:
        """Weights, optimizer and all logged values, bit for bit."""
        return self.uninterrupted == self.interrupted

    @property
    def first_difference(self) -> str | None:
        """Where the two part, in a few words."""
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
class Trial:
    """What is tried. Equal seeds aim alike."""

    kills: int
    steps: int
    seed: int


def prove_resume(
    request: TrainRequest, trial: Trial, observe: Observer, check: Callable[[], None]
) -> Proof:
    """The request's profile trained for some steps twice, in a temporary directory.

    Once uninterrupted, once killed and resumed. `check` may raise to end it. Raises LlmtrainError
    where a training fails by itself.
    """
    profile = proof_profile(request, trial.steps)
    with tempfile.TemporaryDirectory(prefix="llmtrain-proof-") as directory:
        bench = _Bench(Path(directory), profile, trial, observe, check)
        lengths, uninterrupted_s = bench.train_whole()
        kills, interrupted_s = bench.train_killed(lengths)
        return Proof(
            steps=trial.steps,
            processes=bench.processes(),
            kills=tuple(kills),
            uninterrupted=_ending(bench.run("whole")),
            interrupted=_ending(bench.run("killed")),
            uninterrupted_s=uninterrupted_s,
            interrupted_s=interrupted_s,
        )


def proof_profile(request: TrainRequest, steps: int) -> Profile:
    """The request's profile, of so many steps, each saved; often evaluated, if only a little."""
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
    return profile_from_values(values, "the profile to prove")


class _Bench:
    """Two run directories, and a cache for each, so that data is prepared in both."""

    def __init__(
        self,
        directory: Path,
        profile: Profile,
        trial: Trial,
        observe: Observer,
        check: Callable[[], None],
    ) -> None:
        self._directory = directory
        self._profile = profile
        self._trial = trial
        self._observe = observe
        self._check = check
        self._file = directory / "profile.yaml"
        self._file.write_text(yaml.safe_dump(profile.values()), encoding="utf-8")

    def run(self, name: str) -> RunDirectory:
        """Of the training that is called so."""
        return RunDirectory(self._directory / name)

    def processes(self) -> int:
        """How many the plan had."""
        return int(self.run("whole").read_record()["plan"]["processes"]["value"])

    def train_whole(self) -> tuple[dict[Phase, float], float]:
        """How long phases take, and all of it."""
        trial = self._trial
        self._say(
            f"training {trial.steps} steps twice in {self._directory}: once uninterrupted, "
            f"once killed {trial.kills} times"
        )
        self._copy_probes(cache_directory(), self._cache("whole"))
        begun_s = time.monotonic()
        watch, trainee = self._sitting("whole")
        try:
            lengths = lengths_of(trainee, watch, self._check)
            trainee.ended_well()
        finally:
            trainee.end()
        return lengths, time.monotonic() - begun_s

    def train_killed(self, lengths: dict[Phase, float]) -> tuple[list[Kill], float]:
        """Where kills struck until the run was done, and how long all of it took."""
        self._say_cost(lengths)
        self._copy_probes(self._cache("whole"), self._cache("killed"))
        draw = random.Random(self._trial.seed)
        aims = plan_kills(list(lengths), self._trial.kills, self._trial.steps, draw)
        kills: list[Kill] = []
        begun_s = time.monotonic()
        while True:
            watch, trainee = self._sitting("killed")
            try:
                aim = aims[len(kills)] if len(kills) < len(aims) else None
                kill = None
                if aim is not None:
                    length_s = lengths.get(aim.phase, lengths.get("start-up", 0.0))
                    kill = kill_at(trainee, watch, aim, length_s, draw, self._check)
                if kill is None:
                    self._wait(trainee)
                    return kills, time.monotonic() - begun_s
            finally:
                trainee.end()
            kills.append(kill)
            self._say(f"kill {len(kills)}: {kill.victim}, in {kill.phase}, after step {kill.step}")

    def _sitting(self, name: str) -> tuple[Watch, TrainProcess]:
        run, cache = self.run(name), self._cache(name)
        watch = Watch(run, cache, self._profile.eval, self._trial.steps)
        command = ["train", "-p", str(self._file), "--out", str(run.path), "--resume", "auto", "-q"]
        return watch, started(command, cache, self._directory / f"{name}.log")

    def _wait(self, trainee: TrainProcess) -> None:
        while not trainee.has_ended:
            self._check()
            time.sleep(0.05)
        trainee.ended_well()

    def _cache(self, name: str) -> Path:
        return self._directory / f"cache-{name}"

    def _copy_probes(self, source: Path, cache: Path) -> None:
        """What was measured is not measured again, so that both trainings have one plan."""
        cache.mkdir()
        if (source / _KEPT_PROBES).is_dir():
            shutil.copytree(source / _KEPT_PROBES, cache / _KEPT_PROBES)

    def _say_cost(self, lengths: dict[Phase, float]) -> None:
        again_s = sum(lengths.values())
        whole_s = self._trial.kills * again_s
        self._say(f"about {format_duration(whole_s)} more for {self._trial.kills} kills")

    def _say(self, text: str) -> None:
        self._observe(Note(text))


def _ending(run: RunDirectory) -> Ending:
    """Raises LlmtrainError where the run is not finished."""
    newest = next(reversed(list_checkpoints(run.checkpoints)), None)
    if newest is None or not load_state(newest).finished:
        raise LlmtrainError(f"{run.path} ended without being finished")
    lines = [{n: m[n] for n in _TIMELESS if n in m} for m in run.read_metrics()]
    return Ending(
        sha256_file(newest / MODEL),
        sha256_file(newest / OPTIMIZER),
        (*lines, *run.read_samples()),
        load_state(newest).numerics,
    )
