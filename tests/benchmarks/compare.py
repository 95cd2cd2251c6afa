"""llmtrain beside other ways to train the same model on this CPU, one after the other.

    python -m tests.benchmarks.compare --shape S

Every system trains in a process of its own, in turn, round after round, on one token file, one
micro-batch a step. The table is on stdout, a line a run on stderr. Exit code 1 if a system failed,
2 if the command cannot be run.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from llmtrain.profile.shape import shape_of
from tests.benchmarks.bench import Bench
from tests.benchmarks.comparison import SYSTEMS, Comparison, missing_packages
from tests.benchmarks.documents import Prepared
from tests.benchmarks.own import MeasurementError
from tests.benchmarks.report import document, footing, progress_line, table, title
from tests.benchmarks.results import Failure, Round, Run, summarise
from tests.benchmarks.shapes import SHAPES, shape_named
from tests.programs import program_parser

_TABLE_WIDTH = 180  # off a terminal


def main(arguments: Sequence[str]) -> int:
    """The comparison is made and told; its exit code."""
    parser = _parser()
    values = parser.parse_args(arguments)
    comparison = _comparison(parser, values)
    command = shlex.join(["python", "-m", "tests.benchmarks.compare", *arguments])
    with tempfile.TemporaryDirectory(prefix="llmtrain-compare-") as scratch:
        try:
            return _compare(comparison, Bench(comparison, Path(scratch)), values.json, command)
        except MeasurementError as error:
            _say(f"error: {error}")
            return 1
        except KeyboardInterrupt:
            _say("interrupted; --json has the rounds that were finished")
            return 130


def _compare(comparison: Comparison, bench: Bench, json_path: Path | None, command: str) -> int:
    _say(f"preparing {comparison.tokens} tokens")
    prepared = bench.prepare()
    rounds: list[Round] = []
    for number in range(1, comparison.rounds + 1):
        rounds.append(_round(comparison, bench, prepared, number))
        if json_path is not None:  # after every round: what is measured is kept
            told = document(comparison, prepared, rounds, command)
            json_path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    _show(comparison, prepared, rounds)
    return 1 if any(each.failures for each in rounds) else 0


def _round(comparison: Comparison, bench: Bench, prepared: Prepared, number: int) -> Round:
    peaks = bench.peaks(prepared)
    _say(
        f"round {number}  peak    {peaks.bf16_flops / 1e9:8,.0f} GFLOP/s in bf16, "
        f"{peaks.fp32_flops / 1e9:,.0f} in fp32"
    )
    outcomes: list[Run | Failure] = []
    for system in comparison.systems:
        outcomes.append(bench.run(number, system, prepared))
        _say(progress_line(outcomes[-1]))
    return Round(
        peaks,
        runs=[outcome for outcome in outcomes if isinstance(outcome, Run)],
        failures=[outcome for outcome in outcomes if isinstance(outcome, Failure)],
    )


def _show(comparison: Comparison, prepared: Prepared, rounds: Sequence[Round]) -> None:
    console = Console(width=None if sys.stdout.isatty() else _TABLE_WIDTH, highlight=False)
    flops = shape_of(comparison.shape.model).training_flops_per_token
    console.print(table(summarise(rounds, comparison.systems, flops), title(comparison)))
    console.print(footing(prepared, rounds))


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _comparison(parser: argparse.ArgumentParser, values: argparse.Namespace) -> Comparison:
    """What the command line asks for; where it cannot be had, the parser ends the process."""
    shape = values.shape
    systems = tuple(dict.fromkeys(values.systems.split(",")))
    for unknown in (name for name in systems if name not in SYSTEMS):
        parser.error(f"unknown system {unknown!r}; there are {', '.join(SYSTEMS)}")
    if "nanogpt" in systems and values.nanogpt is None:
        parser.error("nanogpt needs --nanogpt PATH, a checkout of karpathy/nanoGPT")
    if missing := missing_packages(systems):
        without = ",".join(name for name in systems if not name.startswith("hf")) or "ours,naive"
        parser.exit(
            2,
            f"error: {', '.join(missing)} is not installed, which the extra `bench` brings: "
            f"pip install -e '.[bench]', or go without: --systems {without}\n",
        )
    return Comparison(
        shape=shape,
        systems=systems,
        rounds=values.rounds,
        steps=values.steps or shape.steps,
        warmup=values.warmup,
        threads=values.threads,
        nproc=values.nproc,
        assignments=tuple(values.set),
        tokens=values.tokens,
        text=values.text,
        seed=values.seed,
        nanogpt=values.nanogpt,
    )


def _parser() -> argparse.ArgumentParser:
    parser = program_parser(__file__, __doc__)
    add = parser.add_argument
    shapes = f"{', '.join(SHAPES)}, or values of a model: hidden_size=512,num_layers=6"
    add("--shape", type=shape_named, default="S", help=f"the model and its micro-batch: {shapes}")
    add("--systems", default="ours,naive,hf", help=f"of {','.join(SYSTEMS)}")
    add("--rounds", type=_positive, default=3, help="how often each system runs")
    add("--steps", type=_positive, help="measured steps of a run; default: the shape's")
    add("--warmup", type=_positive, default=2, help="steps before them")
    add("--tokens", choices=("text", "random"), default="text", help="what the model reads")
    add("--text", default="builtin:python", metavar="SPEC", help="as --data of llmtrain train")
    add("--seed", type=int, default=0, help="of weights, order and random tokens")
    add("--threads", type=_positive, help="of a process; default: the usable cores")
    add("--nproc", type=_positive, default=1, help="processes of ours, each with a micro-batch")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="more settings of ours")
    add("--nanogpt", type=Path, metavar="PATH", help="a checkout, for the system nanogpt")
    add("--json", type=Path, metavar="PATH", help="write everything that was measured")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
