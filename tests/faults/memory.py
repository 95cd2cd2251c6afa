"""Training where memory is short: `python -m tests.faults.memory --runs 20 --limit 2GiB`.

Each run trains cpu-tiny for a few steps in a process that may use only so much memory: in a
control group of its own where one can be made, which the kernel enforces by killing, or else under
RLIMIT_DATA, where allocations fail. Micro-batches, contexts and what else takes memory vary. None
may die of a signal: each trains (exit 0, as planned or by a smaller plan), or refuses or stops,
saved (exit 3). Exits 1 where one did anything else.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from llmtrain.train.run_directory.directory import RunDirectory
from llmtrain.units import format_bytes, parse_bytes
from tests.checkout import import_path
from tests.faults.confinement import Confinement, Means, confined

_ALLOWED = {0: "trained", 3: "refused"}
_RUN_LIMIT_S = 300


@dataclass(frozen=True)
class Case:
    """One run: its step, and what takes memory beside it."""

    context: int
    windows: int  # a step
    micro_batch: str
    ballast: float = 0.0  # share of the limit that something else holds
    growth: float = 0.0  # share of the limit that it takes more of every second
    compiled: bool = False

    def settings(self) -> list[str]:
        """What the command is told."""
        values = {
            "model.context": self.context,
            "train.tokens_per_step": self.context * self.windows,
            "train.micro_batch": self.micro_batch,
            "device.compile": str(self.compiled).lower(),
            "train.log_every_steps": 1,
            "eval.tokens": 2 * self.context,
            "eval.sample_every_steps": "null",
        }
        return [word for item in values.items() for word in ("--set", "=".join(map(str, item)))]

    def beside(self) -> str:
        """What takes memory beside the run."""
        grows = f" +{self.growth:.1%}/s" if self.growth else ""
        return f"{self.ballast:.0%}{grows}" if self.ballast or self.growth else "-"


@dataclass(frozen=True)
class Outcome:
    """What became of a run."""

    exit_code: int
    steps: int
    plans: list[str]
    said: str
    log: str
    wall_s: float

    @property
    def is_allowed(self) -> bool:
        """Whether the run trained, or refused."""
        return self.exit_code in _ALLOWED

    def name(self) -> str:
        """In a word."""
        if self.exit_code < 0:
            return f"SIGNAL {-self.exit_code}"
        if self.exit_code == 0 and len(self.plans) > 1:
            return "replanned"
        if self.exit_code == 3 and self.steps:
            return "stopped"
        return _ALLOWED.get(self.exit_code, f"EXIT {self.exit_code}")


def cases(count: int, seed: int = 0) -> Iterator[Case]:
    """Every kind of case in turn, with what is left open drawn at random."""
    draw = random.Random(seed)
    for number in range(count):
        context = draw.choice((128, 256, 512, 1024))
        windows = max(1, draw.choice((4096, 8192, 16384)) // context)
        halves = [str(windows >> n) for n in range(3) if windows >> n]
        kind = number % 5
        if kind == 0:  # as the plan has it
            yield Case(context, windows, "auto", compiled=number % 10 == 5)
        elif kind == 1:  # as somebody wants it
            yield Case(context, windows, draw.choice(halves))
        elif kind == 2:  # memory that the plan knows nothing of
            yield Case(context, windows, draw.choice(("auto", *halves)), draw.uniform(0.2, 0.5))
        elif kind == 3:  # memory that goes while it trains
            yield Case(context, windows, "auto", 0.2, draw.uniform(0.003, 0.01))
        else:  # hardly any left
            yield Case(context, windows, "auto", draw.uniform(0.5, 0.8))


def run_case(
    case: Case, confinement: Confinement, directory: Path, *, steps: int, data: str | None
) -> Outcome:
    """The case's run, in a new directory."""
    out, log = directory / "run", directory / "log"
    command = [*_trainer(case, confinement), "train", "--profile", "cpu-tiny", "--out", str(out)]
    command += ["--steps", str(steps), *case.settings(), *(["--data", data] if data else [])]
    begun_s = time.monotonic()
    with _neighbour(case, confinement):
        code = confinement.run(command, environment(), log, _RUN_LIMIT_S)
    text = log.read_text(encoding="utf-8", errors="replace")
    took_s = time.monotonic() - begun_s
    return Outcome(code, _steps(out), _plans(out), _said(text), text, took_s)


def _trainer(case: Case, confinement: Confinement) -> list[str]:
    """The program; under a limit of its own process, what is held beside it is held in it."""
    if confinement.means == "rlimit" and case.ballast:
        held = int(case.ballast * confinement.limit_bytes)
        return [sys.executable, "-m", "tests.faults.ballast", str(held)]
    return [sys.executable, "-m", "llmtrain"]


@contextmanager
def _neighbour(case: Case, confinement: Confinement) -> Iterator[None]:
    """Within it a process in the same group holds what the case says."""
    if confinement.means == "rlimit" or not (case.ballast or case.growth):
        yield
        return
    limit = confinement.limit_bytes
    sizes = (case.ballast * limit, case.growth * limit, 0.9 * limit)
    command = [sys.executable, "-m", "tests.faults.neighbour", *(str(int(s)) for s in sizes)]
    process = confinement.start(command, environment(), stdout=subprocess.PIPE)
    try:
        process.stdout.readline()
        yield
    finally:
        process.kill()
        process.communicate()


def environment() -> dict[str, str]:
    """A child's, that finds this checkout."""
    return os.environ | {"PYTHONPATH": import_path(), "PYTHONUNBUFFERED": "1", "COLUMNS": "200"}


def _record(run: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = yaml.safe_load((run / "run.yaml").read_text(encoding="utf-8"))
    except OSError:
        return {}
    return record


def _plans(run: Path) -> list[str]:
    """Every plan that the run had, in short."""
    record = _record(run)
    if not record:
        return []
    changes = record["sessions"][-1].get("changes", [])
    numerics = [record["sessions"][-1]["numerics"], *(change["numerics"] for change in changes)]
    return [f"{n['micro_batch']}×{n['accumulation']}" + _mark(n) for n in numerics]


def _mark(numerics: dict[str, Any]) -> str:
    return "" if numerics["activation_checkpointing"] != "full" else " full"


def _steps(run: Path) -> int:
    """The last one that was done and logged."""
    lines = RunDirectory(run).read_metrics()
    return max((line["step"] for line in lines), default=0)


def _said(log: str) -> str:
    """The error, or else the last warning."""
    found = re.findall(r"^(?:error|warning): (.*)$", log, re.MULTILINE)
    return found[-1] if found else ""


def rows(found: Sequence[tuple[Case, Outcome]]) -> Iterator[str]:
    """The table, a line a run."""
    yield "    context   step asked      beside  outcome    steps  plans"
    for number, (case, outcome) in enumerate(found, 1):
        asked = case.micro_batch + ("c" if case.compiled else "")
        tokens = case.context * case.windows
        yield (
            f"{number:>3} {case.context:>7} {tokens:>6} {asked:>5} {case.beside():>11}  "
            f"{outcome.name():<10} {outcome.steps:>5}  {' → '.join(outcome.plans)}"
        )
        if outcome.said:
            yield f"{'':>36}{outcome.said}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--limit", type=parse_bytes, default=parse_bytes("2GiB"))
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--means", choices=("auto", "cgroup", "rlimit"), default="auto")
    parser.add_argument("--only", type=int, help="the number of one run")
    parser.add_argument("--data", help="the text; builtin:python where left away")
    return parser.parse_args()


def _means(asked: str, limit_bytes: int) -> Means:
    """As asked, or a control group where one can be made."""
    if asked != "auto":
        return "cgroup" if asked == "cgroup" else "rlimit"
    try:
        with confined("cgroup", limit_bytes):
            return "cgroup"
    except OSError:
        return "rlimit"


def say(line: str) -> None:
    """The line is told at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    """The table is printed; returns the exit code."""
    said = _arguments()
    means = _means(said.means, said.limit)
    say(f"{said.runs} runs of {said.steps} steps, {format_bytes(said.limit)} by {means}")
    found = []
    with tempfile.TemporaryDirectory(prefix="llmtrain-memory-") as directory:
        for number, case in enumerate(cases(said.runs, said.seed), 1):
            if said.only not in (None, number):
                continue
            place = Path(directory) / str(number)
            place.mkdir()
            with confined(means, said.limit) as confinement:
                outcome = run_case(case, confinement, place, steps=said.steps, data=said.data)
            say(f"{number}/{said.runs} {outcome.name()} {outcome.wall_s:.0f} s")
            found.append((case, outcome))
    for line in rows(found):
        say(line)
    for number, (_, outcome) in enumerate(found, 1):
        if not outcome.is_allowed:
            say(f"\nrun {number}:\n{outcome.log[-4000:]}")
    bad = sum(not outcome.is_allowed for _, outcome in found)
    say(f"{len(found) - bad} trained or refused, {bad} did not")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
