"""How long until as good: llmtrain beside the naive baseline, on the same text, by the clock.

    python -m tests.benchmarks.time_to_quality --profile cpu-tiny --naive 10m --ours 1m,2m

The baseline trains for its time, once a learning rate, and only its training counts. `llmtrain
train --time` does so for each of its own times, which include starting, compiling, evaluating and
saving; data and tokenizer are in the cache by then. The table is on stdout, `--plot` draws it.
What the file of `--json` has already is not trained again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter
from rich.console import Console
from rich.table import Table

from llmtrain.machine.probe import read_cpu
from llmtrain.units import format_count, format_duration, parse_duration_s
from tests.benchmarks.documents import Quality, QualityJob
from tests.checkout import ROOT
from tests.programs import program_parser


class Row(BaseModel):
    """One trained model. `asked`: what tells it from all others."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    system: str
    asked: str
    quality: Quality


_ROWS = TypeAdapter(list[Row])


def main(arguments: Sequence[str]) -> int:
    """The models are trained, and the table and the ratios told."""
    values = _parser().parse_args(arguments)
    rows = _read(values.json)
    with tempfile.TemporaryDirectory(prefix="llmtrain-quality-") as scratch:
        for asked, train in _trainings(values, Path(scratch)):
            if asked not in {row.asked for row in rows}:
                rows.append(_tell(train(asked)))
                _write(values.json, rows)
    Console().print(_table(rows, values.profile))
    Console().print(conclusion(rows))
    if values.plot is not None:
        from tests.benchmarks.quality_plot import draw

        points = [(row.system, row.quality) for row in rows]
        draw(points, f"{values.profile}, {read_cpu().usable_cores} cores", values.plot)
    return 0


def _trainings(
    values: argparse.Namespace, directory: Path
) -> Iterator[tuple[str, Callable[[str], Row]]]:
    """What is to be trained, and how."""
    settings = " ".join([values.profile, *values.set])
    for rate in values.learning_rates:
        yield (
            f"naive {rate:g} {values.naive:g}s {settings}",
            partial(_naive, values, rate, directory),
        )
    for seconds in values.ours:
        run = directory / f"run-{seconds:g}"
        yield f"ours {seconds:g}s {settings}", partial(_ours, values, seconds, run)


def _read(path: Path | None) -> list[Row]:
    if path is None or not path.exists():
        return []
    return _ROWS.validate_json(path.read_bytes())


def _write(path: Path | None, rows: list[Row]) -> None:
    if path is not None:
        path.write_bytes(_ROWS.dump_json(rows, indent=1) + b"\n")


def conclusion(rows: Sequence[Row]) -> str:
    """Whether one of ours is as good as the best of the others, and in how much less."""
    best = min(
        (row for row in rows if row.system != "ours"), key=lambda row: row.quality.bits_per_byte
    )
    as_good = [
        row.quality
        for row in rows
        if row.system == "ours" and row.quality.bits_per_byte <= best.quality.bits_per_byte
    ]
    if not as_good:
        return f"none of ours is as good as {best.system}"
    first = min(as_good, key=lambda quality: quality.seconds)
    return (
        f"as good as {best.system} in {best.quality.seconds / first.seconds:.1f} times less time "
        f"and {best.quality.tokens / first.tokens:.1f} times fewer tokens"
    )


def _naive(values: argparse.Namespace, rate: float, directory: Path, asked: str) -> Row:
    job = QualityJob(
        profile=values.profile,
        assignments=tuple(values.set),
        budget_s=values.naive,
        learning_rate=rate,
        threads=read_cpu().usable_cores,
        curve_every_steps=values.curve_every,
    )
    job_file, result = directory / "job.json", directory / "result.json"
    job_file.write_text(job.model_dump_json(), encoding="utf-8")
    module = ("-m", "tests.benchmarks.worker", "quality")
    subprocess.run([sys.executable, *module, str(job_file), str(result)], check=True, cwd=ROOT)
    quality = Quality.model_validate_json(result.read_text())
    return Row(system=f"naive, lr {rate:g}", asked=asked, quality=quality)


def _ours(values: argparse.Namespace, seconds: float, run: Path, asked: str) -> Row:
    command = [sys.executable, "-m", "llmtrain", "train", "--profile", values.profile, "--json"]
    command += ["--time", f"{seconds:g}s", "--out", str(run), "--quiet", "--force-cpu"]
    for assignment in values.set:
        command += ["--set", assignment]
    begun_s = time.monotonic()
    done = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, env=os.environ)
    wall_s = time.monotonic() - begun_s  # with starting, compiling, evaluation and saving
    result = json.loads(done.stdout)
    quality = Quality(
        seconds=wall_s,
        steps=result["steps"],
        tokens=result["tokens"],
        bits_per_byte=result["val_bpb"],
    )
    return Row(system="ours", asked=asked, quality=quality)


def _tell(row: Row) -> Row:
    found = row.quality
    sys.stderr.write(f"{row.system}: {found.bits_per_byte:.4f} in {found.seconds:.0f} s\n")
    return row


def _table(rows: Sequence[Row], profile: str) -> Table:
    table = Table(title=f"{profile} on {read_cpu().model}, {read_cpu().usable_cores} cores")
    for column in ("system", "time", "steps", "tokens", "bits/byte"):
        table.add_column(column, justify="left" if column == "system" else "right")
    for row in rows:
        found = row.quality
        table.add_row(
            row.system,
            format_duration(found.seconds),
            str(found.steps),
            format_count(found.tokens),
            f"{found.bits_per_byte:.4f}",
        )
    return table


def _parser() -> argparse.ArgumentParser:
    parser = program_parser(__file__, __doc__)
    add = parser.add_argument
    add("--profile", default="cpu-tiny", help="whose size, text and tokens a step are trained")
    add("--naive", type=parse_duration_s, default="10m", help="how long the baseline trains")
    add("--learning-rates", type=_rates, default="6e-4", help="of the baseline, each a training")
    add("--ours", type=_durations, default="1m,2m", help="how long llmtrain trains")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="settings of the profile")
    add("--curve-every", type=int, metavar="STEPS", help="evaluate the baseline on its way")
    add("--json", type=Path, metavar="PATH", help="keep what was measured, and go on from it")
    add("--plot", type=Path, metavar="PATH", help="draw it, as .svg or .png (extra bench)")
    return parser


def _durations(text: str) -> list[float]:
    return [parse_duration_s(part) for part in text.split(",")]


def _rates(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
