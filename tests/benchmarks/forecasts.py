"""How far the speed and time that a run is forecast are from what comes, with a fresh cache.

    python -m tests.benchmarks.forecasts --cases tiny mini --ways native eager compiled

Each case is a whole `llmtrain train` in a process of its own, which has to time the machine first:
only text and tokenizer are cached. Of a case during which other programs needed the cores the rates
are shown, and no error. Exits 1 if another error is larger than the tolerance.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from llmtrain.machine.facts import CONTENDED_SHARE
from llmtrain.machine.probe import read_facts
from tests.checkout import ROOT
from tests.programs import program_parser

# Nothing is fitted. While the parts of a step were chosen, `tiny` alone was looked at, eagerly: the
# other cases are held back.
CASES = {
    "tiny": ("--profile", "cpu-tiny"),
    "mini": ("--profile", "cpu-mini"),
    "small": ("--profile", "cpu-small"),
    "wide-vocabulary": (
        *("--profile", "cpu-tiny", "--set", "model.vocab_size=24000"),
        *("--set", "model.num_layers=10", "--set", "model.num_heads=5"),
        *("--set", "model.hidden_size=320", "--set", "model.intermediate_size=896"),
        *("--set", "model.context=384"),
    ),
    "long-context": (
        *("--profile", "cpu-tiny", "--set", "model.vocab_size=6000"),
        *("--set", "model.num_layers=14", "--set", "model.num_heads=6"),
        *("--set", "model.hidden_size=384", "--set", "model.intermediate_size=1024"),
        *("--set", "model.context=1024"),
    ),
}
HELD_BACK = tuple(name for name in CASES if name != "tiny")
WAYS = {
    "native": ("device.compile=false", "device.block_kernels=native"),
    "eager": ("device.compile=false", "device.block_kernels=torch"),
    "compiled": ("device.compile=true", "device.block_kernels=torch"),
}
_MEASURED = ("probe", "compiled")  # folders of the cache that a fresh machine does not have


@dataclass(frozen=True, slots=True)
class Result:
    """A run beside its forecast."""

    case: str
    way: str
    tokens_per_s: float
    forecast_tokens_per_s: float
    seconds: float
    forecast_seconds: float
    waited_share: float | None

    @property
    def is_contended(self) -> bool:
        """True if threads waited for other programs."""
        return (self.waited_share or 0.0) > CONTENDED_SHARE

    @property
    def errors(self) -> tuple[float, float]:
        """The relative errors of the forecast rate and time."""
        return (
            self.forecast_tokens_per_s / self.tokens_per_s - 1,
            self.forecast_seconds / self.seconds - 1,
        )

    def row(self) -> str:
        """Return the result as a row of a table."""
        errors = ("busy", "busy") if self.is_contended else (f"{e:+.0%}" for e in self.errors)
        cells = (
            *(self.case, self.way),
            *(f"{self.forecast_tokens_per_s:,.0f}", f"{self.tokens_per_s:,.0f}"),
            *(f"{self.forecast_seconds:.0f} s", f"{self.seconds:.0f} s"),
            *errors,
            "unknown" if self.waited_share is None else f"{self.waited_share:.0%}",
        )
        return f"| {' | '.join(cells)} |"


def result_of(case: str, way: str, recorded: dict[str, Any]) -> Result:
    """Return the result of a run from `result` in its run.yaml."""
    return Result(
        case=case,
        way=way,
        tokens_per_s=recorded["trained_tokens_per_step"] / recorded["step_s"],
        forecast_tokens_per_s=recorded["predicted_tokens_per_s"],
        seconds=recorded["seconds"],
        forecast_seconds=recorded["predicted_seconds"],
        waited_share=recorded["waited_share"],
    )


def main(arguments: Sequence[str]) -> int:
    """Print a table; return 1 where a forecast is off by more than the tolerance."""
    options = _parser().parse_args(arguments)
    say(machine())
    say("")
    columns = ("forecast tokens/s", "measured", "forecast time", "measured", "rate", "time")
    say(f"| case | | {' | '.join(columns)} | waited |")
    say("|" + " --- |" * 9)
    results = []
    for result in _results(options):
        results.append(result)
        say(result.row())
    off = [r for r in results if not r.is_contended and abs(r.errors[0]) > options.tolerance]
    return 1 if off else 0


def machine() -> str:
    """Return what is measured: the processor, its cores and instructions, and torch."""
    facts = read_facts(tries_gpus=False)
    isa = ", ".join(facts.cpu.isa)
    return (
        f"{facts.cpu.model or 'unknown CPU'}, {facts.cpu.usable_cores} cores ({isa}), torch "
        f"{facts.torch_version}; held back: {', '.join(HELD_BACK)}"
    )


def _results(options: argparse.Namespace) -> Iterator[Result]:
    with tempfile.TemporaryDirectory(prefix="llmtrain-forecasts-") as scratch:
        for case in options.cases:
            for way in options.ways:
                cache = Path(scratch) / "cache"
                for folder in _MEASURED:
                    shutil.rmtree(cache / folder, ignore_errors=True)
                run = Path(scratch) / f"{case}-{way}"
                settings = (word for value in WAYS[way] for word in ("--set", value))
                _train([*CASES[case], *settings], options, cache, run)
                recorded = yaml.safe_load((run / "run.yaml").read_text(encoding="utf-8"))
                yield result_of(case, way, recorded["result"])


def _train(settings: Sequence[str], options: argparse.Namespace, cache: Path, run: Path) -> None:
    command = [sys.executable, "-m", "llmtrain", "train", *settings, "--device", "cpu"]
    command += ["--steps", str(options.steps), "--out", str(run), "--quiet", "--json"]
    for assignment in ("eval.tokens=16384", "eval.sample_every_steps=null", *options.set):
        command += ["--set", assignment]
    for name in options.data:
        command += ["--data", str(Path(name).resolve())]
    environment = os.environ | {"LLMTRAIN_CACHE_DIR": str(cache)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}\n{done.stderr}")


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = program_parser(__file__, __doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--steps", type=int, default=24, help="of each run")
    parser.add_argument("--data", action="append", default=[], help="text; default: Python's own")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="settings")
    parser.add_argument("--tolerance", type=float, default=0.1, help="of the rate")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
