"""Start training processes, and kill them at a chosen phase."""

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
from llmtrain.engine.prove_resume.observe import Phase, Watch
from llmtrain.errors import LlmtrainError, describe_exit_code

_POLL_EVERY_S = 0.001
_ALL_GONE_S = 60.0  # limit for the remaining ranks to end after a kill
_LAST_LINES = 5  # of the log, shown on failure

# Before the run is started; these phases do not occur again afterwards.
_STARTING: tuple[Phase, ...] = ("start-up", "data preparation")
_KILLS_PER_STARTING_KILL = 10


@dataclass(frozen=True, slots=True)
class KillTarget:
    """The moment of a kill: `lengths` median durations after the phase starts, or its end.

    That of the first occurrence from `from_step` on; for phases of training, of the first one
    after a checkpoint was saved. If there is none by `latest_step`, the kill is at that step.
    """

    phase: Phase
    from_step: int
    lengths: float
    latest_step: int


@dataclass(frozen=True, slots=True)
class Kill:
    """One kill; `phase` is the one that rank 0 was in, by the files it left.

    `after_checkpoint`: the next session resumed from a checkpoint instead of starting anew.
    """

    phase: Phase
    aimed_at: Phase
    step: int
    victim: str
    gone_after_s: float  # until no process of the run was left
    after_checkpoint: bool


def plan_kills(
    phases: Sequence[Phase], kills: int, steps: int, rng: random.Random
) -> list[KillTarget]:
    """Return a target for each kill: every phase about equally often, in random order.

    At most half of them, the first ones, are before the first step.
    """
    starting = [phase for phase in _STARTING if phase in phases]
    wanted = -(-kills // _KILLS_PER_STARTING_KILL) * len(starting)
    first = [starting[i % len(starting)] for i in range(min(wanted, kills // 2))]
    others: list[Phase] = [*(p for p in phases if p not in _STARTING), "resume"]
    rest = [others[i % len(others)] for i in range(kills - len(first))]
    rng.shuffle(rest)
    return [
        KillTarget(phase, 1 + i * (steps - 1) // kills, rng.random(), steps - 1)
        for i, phase in enumerate([*first, *rest])
    ]


class TrainProcess:
    """A training command in its own process group; its output goes to a log file."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self._log = log
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                command,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=sys.platform != "win32",  # Ctrl-C is for this process alone
            )

    @property
    def has_ended(self) -> bool:
        """True if the command has ended."""
        return self._process.poll() is not None

    def require_success(self) -> None:
        """Wait for the process; raise LlmtrainError with its last log lines on a non-zero exit."""
        code = self._process.wait()
        if code:
            lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
            raise LlmtrainError(
                f"training {describe_exit_code(code)}: {' | '.join(lines[-_LAST_LINES:])}",
                hint="check that the same profile trains: llmtrain train",
            )

    def end(self) -> None:
        """Kill every process of the command, and wait for them."""
        family = self._family()
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()
        psutil.wait_procs(family, timeout=_ALL_GONE_S)

    def kill(self, rng: random.Random) -> tuple[str, float]:
        """Kill one rank or all processes; return which, and the seconds until all had ended.

        Raises LlmtrainError if the remaining ranks do not end by themselves.
        """
        family = self._family()
        ranks = {rank: process for process in family if (rank := _rank_of(process)) is not None}
        victim = rng.choice([None, *ranks])
        started_s = time.monotonic()
        for process in [ranks[victim]] if victim is not None else family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        _, alive = psutil.wait_procs(family, timeout=_ALL_GONE_S)
        self.end()
        if alive:
            raise LlmtrainError(
                f"rank {victim} was killed, and {len(alive)} processes were still running "
                f"{_ALL_GONE_S:g} s later",
                hint="this is a defect of llmtrain; please report it",
            )
        name = f"rank {victim}" if victim is not None else "every process"
        return name if ranks else "the process", time.monotonic() - started_s

    def _family(self) -> list[psutil.Process]:
        """Return the process and its descendants; the launcher first, so that it starts no more."""
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


def median_phase_s(
    training: TrainProcess, watch: Watch, check: Callable[[], None]
) -> dict[Phase, float]:
    """Observe an uninterrupted training to its end; return the median seconds of each phase."""
    durations_s: dict[Phase, list[float]] = defaultdict(list)
    phase, started_s = watch.phase(), time.monotonic()
    while not training.has_ended:
        check()
        now = watch.phase()
        if now != phase:
            durations_s[phase].append(time.monotonic() - started_s)
            phase, started_s = now, time.monotonic()
        time.sleep(_POLL_EVERY_S)
    return {phase: median(lengths) for phase, lengths in durations_s.items()}


def kill_at(
    training: TrainProcess,
    watch: Watch,
    target: KillTarget,
    length_s: float,
    rng: random.Random,
    check: Callable[[], None],
) -> Kill | None:
    """Wait for the target and kill the training there; return None if it ended before."""
    while not _is_reached(watch, target):
        check()
        if training.has_ended:
            return None
        time.sleep(_POLL_EVERY_S)
    until_s = time.monotonic() + target.lengths * length_s
    seen = first = watch.phase()
    while seen == first and time.monotonic() < until_s:
        time.sleep(_POLL_EVERY_S)
        seen = watch.phase()
    if training.has_ended:
        return None
    victim, gone_after_s = training.kill(rng)
    phase = seen if victim.startswith("rank") and victim != "rank 0" else watch.phase()
    return Kill(phase, target.phase, watch.step, victim, gone_after_s, watch.has_checkpoint)


def _is_reached(watch: Watch, target: KillTarget) -> bool:
    phase = watch.phase()
    if target.phase == "data preparation":
        return phase != "start-up"  # cached data is not prepared again
    if target.phase == "start-up":
        return True
    if not watch.has_checkpoint:
        return False
    if target.phase == "resume":
        return True
    is_due = phase == target.phase and watch.step >= target.from_step
    return is_due or (phase != "resume" and watch.step >= target.latest_step)


def start_training(command: Sequence[str], cache: Path, log: Path) -> TrainProcess:
    """Start `llmtrain COMMAND` with its own cache and no settings from the environment."""
    own = {n: v for n, v in os.environ.items() if not n.startswith("LLMTRAIN_")}
    environment = own | {"LLMTRAIN_CACHE_DIR": str(cache)}
    return TrainProcess(python_command(MAIN, *command), environment, log)
