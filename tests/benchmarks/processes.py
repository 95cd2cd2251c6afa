"""How many processes train a shape fastest on this CPU, and does the plan find that?

    python -m tests.benchmarks.processes

First the plan times a step by each number of processes, as it does before a long run. Then runs
train the same tokens a step by each number, with equal shares of the cores, and the best of them
stands beside the plan's choice. Kernels are those of a long run; blocks are eager. The text is
random, in a cache of its own, in which native kernels are compiled first. On sixteen cores about
four minutes for S; fewer with `--steps 3`.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from llmtrain.choice import Choice
from llmtrain.engine.workload import workload_of
from llmtrain.machine.facts import Facts
from llmtrain.machine.probe import read_facts
from llmtrain.machine.startup import prepare_for_torch
from llmtrain.plan.cpu_benchmarks import measured_eager_step
from llmtrain.plan.planner import Plan, make_plan
from llmtrain.plan.process_benchmarks import with_timed_processes
from llmtrain.profile.load import load_profile
from llmtrain.profile.schema import Profile
from tests.benchmarks.bench import Bench
from tests.benchmarks.comparison import Comparison
from tests.benchmarks.documents import Prepared
from tests.benchmarks.own import own_command, step_seconds
from tests.benchmarks.process import run_measured, tail
from tests.benchmarks.results import OURS
from tests.benchmarks.shapes import SHAPES
from tests.checkout import ROOT
from tests.programs import program_parser


def main(arguments: Sequence[str]) -> int:
    """Time, train and compare."""
    parser = program_parser(__file__, __doc__)
    add = parser.add_argument
    add("--shape", choices=SHAPES, default="S", help="the model")
    add("--tokens-per-step", type=int, default=16384, help="of all processes")
    add("--steps", type=int, default=5, help="measured steps of a run, after two")
    add("--processes", type=int, nargs="*", help="numbers to train with; default: 1, 2, 4, 8")
    options = parser.parse_args(arguments)
    prepare_for_torch()
    facts = read_facts(tries_gpus=False)
    cores = facts.cpu.usable_cores
    numbers = options.processes or [n for n in (1, 2, 4, 8) if cores % n == 0]
    comparison = Comparison(
        shape=SHAPES[options.shape],
        systems=(OURS,),
        rounds=1,
        steps=options.steps,
        warmup=2,
        threads=None,
        nproc=1,
        assignments=(
            f"train.tokens_per_step={options.tokens_per_step}",
            "train.micro_batch=auto",
            "optim.name=muon",
            "device.compile=false",
        ),
        tokens="random",
        text="builtin:python",
        seed=0,
        nanogpt=None,
    )
    with tempfile.TemporaryDirectory(prefix="llmtrain-processes-") as scratch:
        os.environ["LLMTRAIN_CACHE_DIR"] = str(Path(scratch) / "cache")
        prepared = Bench(comparison, Path(scratch)).prepare()
        plan = _plan(facts, comparison)
        rates = dict(_rates(comparison, plan, prepared, numbers, cores, Path(scratch)))
    for line in table(rates, cores, plan.processes):
        sys.stdout.write(f"{line}\n")
    return 0 if rates else 1


def _plan(facts: Facts, comparison: Comparison) -> Plan:
    """Return the plan of a run of hours, which times what it needs."""
    profile: Profile = load_profile(
        comparison.shape.profile,
        environment={},
        assignments=[
            *comparison.own_assignments,
            "train.tokens=null",
            "train.time=8h",
            "device.force_cpu=true",
        ],
    ).profile
    workload = with_timed_processes(
        facts, profile.device, workload_of(profile, None, facts), announce=_say
    )
    alone = replace(workload, timed_processes=None)
    times = measured_eager_step(facts, profile.device, alone, _say)
    return make_plan(facts, profile.device, workload, times)


def _rates(
    comparison: Comparison,
    plan: Plan,
    prepared: Prepared,
    numbers: Sequence[int],
    cores: int,
    scratch: Path,
) -> Iterator[tuple[int, float]]:
    """Yield the tokens per second of a run by each number of processes."""
    for number in numbers:
        kernels = (f"device.attention={plan.attention.value}", f"device.loss={plan.loss.value}")
        each = replace(
            comparison,
            nproc=number,
            threads=cores // number,
            assignments=(*comparison.assignments, *kernels),
        )
        out, log = scratch / f"by-{number}", scratch / f"by-{number}.log"
        finished = run_measured(own_command(each, prepared, out), dict(os.environ), log, ROOT)
        if finished.exit_code:
            _say(f"{number} processes: {tail(log)}")
            continue
        lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        step_s = step_seconds(map(json.loads, lines))
        per_step = float(comparison.assignments[0].partition("=")[2])
        yield number, per_step / statistics.median(step_s[each.warmup :])
        _say(f"{number} processes trained")


def table(rates: Mapping[int, float], cores: int, choice: Choice[int]) -> Iterator[str]:
    """Yield what was measured as a table, with the plan's choice beside the best."""
    yield "| processes × threads | tokens/s | beside one process | |"
    yield "| --- | --- | --- | --- |"
    best = max(rates, key=lambda number: rates[number], default=None)
    for number, rate in rates.items():
        marks = [what for what, n in (("best", best), ("the plan's", choice.value)) if n == number]
        beside = f"{rate / rates[1] - 1:+.1%}" if 1 in rates else ""
        yield f"| {number} × {cores // number} | {rate:,.0f} | {beside} | {', '.join(marks)} |"
    yield ""
    yield f"plan: {choice.value} ({choice.reason})"


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
