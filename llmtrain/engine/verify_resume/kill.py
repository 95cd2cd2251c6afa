"""Training processes that are killed at a chosen moment, and how they end."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil

from llmtrain.children import MAIN, python_command
from llmtrain.engine.verify_resume.observe import Phase, Watch
from llmtrain.errors import LlmtrainError, describe_exit_code

_LOOK_EVERY_S = 0.001
_ALL_GONE_S = 60.0  # after a kill; ranks promise less
_LAST_WORDS = 5  # lines

# Before a run is begun; afterwards these do not come again.
_OPENING: tuple[Phase, ...] = ("start-up", "data preparation")
_OPENING_SHARE = 10  # of so many kills one strikes there


@dataclass(frozen=True, slots=True)
class KillTarget:
    """The first moment of `phase` at or after a step, and so many of its usual lengths later, or
    where it ends before that, at its end."""

    phase: Phase
    from_step: int
    lengths: float


@dataclass(frozen=True, slots=True)
class Kill:
    """One process or all were killed. `phase`: what the files that rank 0 left say it was doing,
    or, where another rank was killed and rank 0 only followed, what it did at that moment."""

    phase: Phase
    aimed_at: Phase
    step: int
    victim: str
    gone_after_s: float  # when no process of the run was left


def plan_kills(
    phases: Sequence[Phase], kills: int, steps: int, draw: random.Random
) -> list[KillTarget]:
    """So many aims over the course of a run: each phase about as often, in no order."""
    opening = [phase for phase in _OPENING if phase in phases]
    first = [opening[i % len(opening)] for i in range(-(-kills // _OPENING_SHARE) * len(opening))]
    others: list[Phase] = [*(p for p in phases if p not in _OPENING), "resume"]
    rest = [others[i % len(others)] for i in range(kills - len(first))]
    draw.shuffle(rest)
    return [
        KillTarget(phase, 1 + i * (steps - 1) // kills, draw.random())
        for i, phase in enumerate([*first, *rest][:kills])
    ]


class TrainProcess:
    """A command that trains in `environment`; its words go to a file."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self._log = log
        with log.open("ab") as words:
            self._process = subprocess.Popen(
                command,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=words,
                stderr=words,
                start_new_session=sys.platform != "win32",  # a Ctrl-C is for the prover
            )

    @property
    def has_ended(self) -> bool:
        """Whether the command has an exit code."""
        return self._process.poll() is not None

    def ended_well(self) -> None:
        """Nothing. Raises LlmtrainError with its last words where it ended otherwise than by 0."""
        code = self._process.wait()
        if code:
            words = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
            raise LlmtrainError(
                f"training {describe_exit_code(code)}: {' | '.join(words[-_LAST_WORDS:])}",
                hint="see whether the same profile trains: llmtrain train",
            )

    def end(self) -> None:
        """No process of it is left."""
        family = self._family()
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()
        psutil.wait_procs(family, timeout=_ALL_GONE_S)

    def kill(self, draw: random.Random) -> tuple[str, float]:
        """Who was killed, all of them or one rank of several, and how long others lived on.

        Raises LlmtrainError where the others do not end by themselves.
        """
        family = self._family()
        ranks = {rank: process for process in family if (rank := _rank_of(process)) is not None}
        victim = draw.choice([None, *ranks])
        begun_s = time.monotonic()
        for process in [ranks[victim]] if victim is not None else family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        _, alive = psutil.wait_procs(family, timeout=_ALL_GONE_S)
        self.end()
        if alive:
            raise LlmtrainError(
                f"rank {victim} was killed, and {len(alive)} processes lived on for "
                f"{_ALL_GONE_S:g} s",
                hint="this is a defect of llmtrain; please report it",
            )
        name = f"rank {victim}" if victim is not None else "every process"
        return name if ranks else "the process", time.monotonic() - begun_s

    def _family(self) -> list[psutil.Process]:
        """The process, and those that it started; the launcher first, so that it starts no more."""
        try:
            process = psutil.Process(self._process.pid)
            return [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


def _rank_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get("RANK")
    except psutil.Error:
        return None


def lengths_of(
    trainee: TrainProcess, watch: Watch, check: Callable[[], None]
) -> dict[Phase, float]:
    """The usual seconds of each phase that an uninterrupted training went through."""
    seen: dict[Phase, list[float]] = defaultdict(list)
    phase, begun_s = watch.phase(), time.monotonic()
    while not trainee.has_ended:
        check()
        now = watch.phase()
        if now != phase:
            seen[phase].append(time.monotonic() - begun_s)
            phase, begun_s = now, time.monotonic()
        time.sleep(_LOOK_EVERY_S)
    return {phase: median(lengths) for phase, lengths in seen.items()}


def kill_at(
    trainee: TrainProcess,
    watch: Watch,
    aim: KillTarget,
    length_s: float,
    draw: random.Random,
    check: Callable[[], None],
) -> Kill | None:
    """The kill that `aim` led to; None where training ended before."""
    while not _has_come(watch, aim):
        check()
        if trainee.has_ended:
            return None
        time.sleep(_LOOK_EVERY_S)
    until_s = time.monotonic() + aim.lengths * length_s
    seen = begun = watch.phase()
    while seen == begun and time.monotonic() < until_s:
        time.sleep(_LOOK_EVERY_S)
        seen = watch.phase()
    if trainee.has_ended:
        return None
    victim, gone_after_s = trainee.kill(draw)
    phase = seen if victim.startswith("rank") and victim != "rank 0" else watch.phase()
    return Kill(phase, aim.phase, watch.step, victim, gone_after_s)


def _has_come(watch: Watch, aim: KillTarget) -> bool:
    phase = watch.phase()
    if aim.phase == "data preparation":
        return phase != "start-up"  # what is prepared already is not prepared again
    if aim.phase in ("start-up", "resume"):
        return True
    return phase == aim.phase and watch.step >= aim.from_step


def started(command: Sequence[str], cache: Path, log: Path) -> TrainProcess:
    """`llmtrain COMMAND` runs, with a cache of its own and no setting from the environment."""
    own = {n: v for n, v in os.environ.items() if not n.startswith("LLMTRAIN_")}
    environment = own | {"LLMTRAIN_CACHE_DIR": str(cache)}
    return TrainProcess(python_command(MAIN, *command), environment, log)
