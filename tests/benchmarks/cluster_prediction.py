"""How far is `llmtrain cluster plan` from the measured step of ranks that average over gloo?

    python -m tests.benchmarks.cluster_prediction
    python -m tests.benchmarks.cluster_prediction --models small --cases "2 machines" --mbit 1000

Two network namespaces of this machine stand for two machines of one core each, by the CPU affinity
of their ranks, with an Ethernet of so many Mbit/s between them. Each case is predicted by the
command, in a fresh cache and before anything is trained; then it is trained, and its median step,
or of rounds the mean one, is compared. Nothing is fitted to a case. Needs root, and two cores that
are idle. A line of JSON a case, then a table.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtrain.train.run_directory.directory import RunDirectory
from tests.benchmarks.slow_link import Side, slow_link
from tests.programs import program_parser

_PORT = 29650
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
    with tempfile.TemporaryDirectory(prefix="llmtrain-prediction-") as directory:
        os.environ["LLMTRAIN_CACHE_DIR"] = str(Path(directory) / "cache")
        predicted = [_predicted_s(trial) for trial in trials]
        rows = []
        for number, (trial, step_s) in enumerate(zip(trials, predicted, strict=True)):
            found = _measured_s(trial, Path(directory) / f"run-{number}")
            rows.append((trial, step_s, found))
            line = {"model": trial.model, "case": trial.case.name, "mbit": trial.mbit}
            line |= {"predicted_s": step_s, "measured_s": found, "error": step_s / found - 1}
            sys.stdout.write(f"{json.dumps(line)}\n")
            sys.stdout.flush()
    for text in _table(rows):
        sys.stdout.write(f"{text}\n")


def _predicted_s(trial: Trial) -> float:
    case = trial.case
    command = [
        *("taskset", "-c", case.cores, sys.executable, "-m", "llmtrain", "cluster", "plan"),
        *("--json", "--nodes", str(case.nodes), "--nproc", str(case.local)),
        *("--network", f"{_AS_ETHERNET * trial.mbit:.6g}Mb"),
        *("--round-trip", f"{trial.round_trip_ms:g}ms", *trial.settings),
    ]
    found = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
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


def _table(rows: Sequence[tuple[Trial, float, float]]) -> Iterator[str]:
    yield "| model | ranks | network | predicted step | measured | |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for trial, predicted_s, found_s in rows:
        network = f"{trial.mbit:g} Mbit/s" if trial.case.nodes > 1 else ""
        times = f"{1e3 * predicted_s:,.0f} ms | {1e3 * found_s:,.0f} ms"
        error = f"{predicted_s / found_s - 1:+.1%}"
        yield f"| {trial.model} | {trial.case.name} | {network} | {times} | {error} |"


if __name__ == "__main__":
    main()
