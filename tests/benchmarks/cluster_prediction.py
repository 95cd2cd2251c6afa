"""How far is `llmtrain cluster plan` from the measured step of ranks that average over gloo?

    python -m tests.benchmarks.cluster_prediction
    python -m tests.benchmarks.cluster_prediction --models small --cases "2 machines" --mbit 1000

Two network namespaces of this machine stand for two machines of one core each, by the CPU affinity
of their ranks, with an Ethernet of so many Mbit/s between them. Each case is predicted by the
command, in a fresh cache; then it is trained, and its median step, or of rounds the mean one, is
compared. Nothing is fitted to a case. What other programs disturbed is done again, a few times.
Needs root and two cores. A line of JSON a case, then a table.
"""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from llmtrain.train.run_directory.directory import RunDirectory
from tests.benchmarks.slow_link import Side, slow_link
from tests.programs import program_parser

_PORT = 29650
_QUIET = 0.05  # of the cores, that other programs may use
_POLL_S, _MOST_POLLS = 3.0, 20
_SKIPPED = 3  # steps, while buckets are made and caches fill
# A packet of the link has 9,000 bytes, of which 8,948 are data; one of an Ethernet 1,448 of 1,538.
_AS_ETHERNET = (8948 / 9000) / (1448 / 1538)
_COMMON = ("device.compile=false", "eval.sample_every_steps=null", "eval.tokens=4096")
_MODELS = {
    "small": (
        "cpu-tiny",
        "model.hidden_size=128",
        "model.num_layers=4",
        "model.intermediate_size=384",
        "model.num_heads=2",
        "model.vocab_size=1024",
        "model.context=128",
        "device.precision=fp32",
        "train.tokens_per_step=2048",
    ),
    "cpu-tiny": ("cpu-tiny", "train.tokens_per_step=4096"),
    "cpu-small": ("cpu-small", "train.tokens_per_step=8192"),
}
_STEPS = {"small": 40, "cpu-tiny": 30, "cpu-small": 13}


@dataclass(frozen=True, slots=True)
class Case:
    """Ranks on machines, and how they exchange."""

    name: str
    nodes: int
    local: int  # ranks of a machine
    settings: tuple[str, ...] = ()
    every: int = 1

    @property
    def cores(self) -> str:
        """The cores of a machine: all, or one of each of two."""
        return "0-1" if self.nodes == 1 else "0"

    def steps(self, model: str) -> int:
        """Return the steps to train: of rounds, three of them after the first."""
        return 4 * self.every if self.every > 1 else _STEPS[model]


_CASES = (
    Case("1 rank", 1, 1),
    Case("2 ranks of a machine", 1, 2),
    Case("4 ranks of a machine", 1, 4),
    Case("2 machines, 1 rank each", 2, 1),
    Case("2 machines, 2 ranks each", 2, 2),
    Case("2 machines, rounds of 10", 2, 1, ("train.sync_every=10",), every=10),
    Case(
        "2 machines, rounds of 10 beside 4, bf16",
        2,
        1,
        ("train.sync_every=10", "train.sync_delay=4", "train.sync_precision=bf16"),
        every=10,
    ),
)


@dataclass(frozen=True, slots=True)
class Trial:
    """A case of a model, over a network."""

    model: str
    case: Case
    mbit: float
    round_trip_ms: float

    @property
    def settings(self) -> list[str]:
        """The words of a command that say what is trained."""
        profile, *settings = _MODELS[self.model]
        every = (*settings, *_COMMON, *self.case.settings)
        return ["--profile", profile, *(word for each in every for word in ("--set", each))]


def main() -> None:
    """Predict all cases, then train them."""
    parser = program_parser(__file__, __doc__)
    parser.add_argument("--models", default="small,cpu-tiny")
    parser.add_argument("--cases", default="", help="only those whose name contains this")
    parser.add_argument("--mbit", default="1000,100")
    parser.add_argument("--attempts", type=int, default=3, help="where other programs are busy")
    parser.add_argument("--round-trip-ms", type=float, default=0.3)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends the ranks, too
    rates = [float(rate) for rate in options.mbit.split(",")]
    trials = [
        Trial(model, case, rate, options.round_trip_ms)
        for model in options.models.split(",")
        for case in _CASES
        if options.cases in case.name
        for rate in (rates if case.nodes > 1 else rates[:1])
    ]
    rows = []
    for trial in trials:
        with tempfile.TemporaryDirectory(prefix="llmtrain-prediction-") as directory:
            row = _compared(trial, Path(directory), options.attempts)
        rows.append(row)
        line = {"model": trial.model, "case": trial.case.name, "mbit": trial.mbit}
        line |= {"predicted_s": row.predicted_s, "measured_s": row.measured_s}
        line |= {"error": row.error, "others": row.others}
        sys.stdout.write(f"{json.dumps(line)}\n")
        sys.stdout.flush()
    for text in _table(rows):
        sys.stdout.write(f"{text}\n")


@dataclass(frozen=True, slots=True)
class Row:
    """A predicted and a measured step."""

    trial: Trial
    predicted_s: float
    measured_s: float
    others: float  # the share of both cores that other programs used, the larger one of both

    @property
    def error(self) -> float:
        """By how much the prediction is too long, as a share."""
        return self.predicted_s / self.measured_s - 1


def _compared(trial: Trial, directory: Path, attempts: int) -> Row:
    """Predict a case by a fresh cache, then train it; both again where others were busy."""
    predicted_s, busy = _undisturbed(
        lambda number: _predicted_s(trial, directory / f"cache-{number}"), attempts
    )
    measured_s, busy_then = _undisturbed(
        lambda number: _measured_s(trial, directory / f"run-{number}"), attempts
    )
    return Row(trial, predicted_s, measured_s, max(busy, busy_then))


def _undisturbed(run: Callable[[int], float], attempts: int) -> tuple[float, float]:
    """Return what the first run gives in which others had little of the cores, and their share."""
    best = math.nan, math.inf
    for number in range(attempts):
        _await_quiet()
        started_s, busy_s, own_s = time.monotonic(), _busy_s(), _own_s()
        found = run(number)
        wall_s = time.monotonic() - started_s
        others_s = _busy_s() - busy_s - (_own_s() - own_s)
        share = max(0.0, others_s / wall_s / (os.cpu_count() or 1))
        best = min(best, (found, share), key=lambda each: each[1])
        if share < _QUIET:
            break
    return best


def _await_quiet() -> None:
    """Wait until the cores are idle, for some minutes at most."""
    for _ in range(_MOST_POLLS):
        before_s = _busy_s()
        time.sleep(_POLL_S)
        if (_busy_s() - before_s) / _POLL_S / (os.cpu_count() or 1) < _QUIET:
            return


def _busy_s() -> float:
    """Return the seconds that all cores have computed, but for programs of a low priority."""
    times = psutil.cpu_times()
    return float(times.user + times.system + times.irq + times.softirq + times.steal)


def _own_s() -> float:
    """Return the seconds of them that were this program's and its children's."""
    used = [resource.getrusage(of) for of in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _predicted_s(trial: Trial, cache: Path) -> float:
    case = trial.case
    command = [
        *("taskset", "-c", case.cores, sys.executable, "-m", "llmtrain", "cluster", "plan"),
        *("--json", "--nodes", str(case.nodes), "--nproc", str(case.local)),
        *("--network", f"{_AS_ETHERNET * trial.mbit:.6g}Mb"),
        *("--round-trip", f"{trial.round_trip_ms:g}ms", *trial.settings),
    ]
    environment = os.environ | {"LLMTRAIN_CACHE_DIR": str(cache)}
    found = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, check=True, text=True
    ).stdout
    step_s: float = json.loads(found)["step"]["step_s"]
    return step_s


def _measured_s(trial: Trial, out: Path) -> float:
    """Train the case; return the seconds of a step."""
    steps = trial.case.steps(trial.model)
    more = ["--set", f"train.steps={steps}", "--set", "train.log_every_steps=1"]
    command = [sys.executable, "-m", "llmtrain", "train", *trial.settings, *more]
    command += ["--out", str(out), "--json"]
    if trial.case.nodes == 1:
        words = ["taskset", "-c", trial.case.cores, *command, "--nproc", str(trial.case.local)]
        _finish([subprocess.Popen(words, stdout=subprocess.DEVNULL)])
    else:
        with slow_link(trial.mbit * 1e6, trial.round_trip_ms / 1e3) as sides:
            _finish(list(_started(trial, command, sides)))
    return _step_s(RunDirectory(out).metrics, trial.case)


def _started(
    trial: Trial, command: Sequence[str], sides: Sequence[Side]
) -> Iterator[subprocess.Popen[bytes]]:
    local = trial.case.local
    for rank in range(trial.case.nodes * local):
        node = rank // local
        variables = {
            "RANK": str(rank),
            "WORLD_SIZE": str(trial.case.nodes * local),
            "LOCAL_RANK": str(rank % local),
            "LOCAL_WORLD_SIZE": str(local),
            "MASTER_ADDR": sides[0].address,
            "MASTER_PORT": str(_PORT),
        }
        words = sides[node].command("taskset", "-c", str(node), *command)
        yield subprocess.Popen(words, env=os.environ | variables, stdout=subprocess.DEVNULL)


def _finish(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    try:
        codes = [rank.wait() for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    if any(codes):
        sys.exit(f"a rank ended with {codes}")


def _step_s(metrics: Path, case: Case) -> float:
    """Return the median seconds of a step, or the mean of those of whole rounds."""
    lines: list[dict[str, Any]] = [json.loads(line) for line in metrics.read_text().splitlines()]
    steps = [line for line in lines if "tokens_per_s" in line]
    per_step = steps[0]["tokens"]
    seconds: dict[int, float] = {line["step"]: per_step / line["tokens_per_s"] for line in steps}
    if case.every > 1:  # a step after the first exchange until the last one
        last = len(steps) - case.every
        return statistics.mean(seconds[step] for step in range(case.every + 1, last + 1))
    return statistics.median(seconds[step] for step in seconds if step > _SKIPPED)


def _table(rows: Sequence[Row]) -> Iterator[str]:
    yield "| model | ranks | network | predicted step | measured | | others had |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for row in rows:
        trial = row.trial
        network = f"{trial.mbit:g} Mbit/s" if trial.case.nodes > 1 else ""
        times = f"{1e3 * row.predicted_s:,.0f} ms | {1e3 * row.measured_s:,.0f} ms"
        name = f"| {trial.model} | {trial.case.name} | {network}"
        yield f"{name} | {times} | {row.error:+.1%} | {row.others:.0%} |"


if __name__ == "__main__":
    main()
