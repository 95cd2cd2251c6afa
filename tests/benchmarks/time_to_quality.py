"""How long until as good: llmtrain beside the naive baseline, on the same text, by the clock.

    python -m tests.benchmarks.time_to_quality --profile cpu-tiny --naive 10m --ours 1m,2m

The baseline trains for its time, once a learning rate, and only its training counts. `llmtrain
train --time` does so for each of its own times, which include starting, compiling, evaluating and
saving; data and tokenizer are in the cache by then. The table is on stdout.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from llmtrain.device.probe import read_cpu
from llmtrain.units import format_count, format_duration, parse_duration_s
from tests.benchmarks.documents import Quality, QualityJob

_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Row:
    """One trained model."""

    system: str
    quality: Quality


def main(arguments: Sequence[str]) -> int:
    """The models are trained, and the table and the ratios told."""
    values = _parser().parse_args(arguments)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="llmtrain-quality-") as scratch:
        directory = Path(scratch)
        for rate in values.learning_rates:
            rows.append(_tell(_naive(values, rate, directory)))
        for number, seconds in enumerate(values.ours):
            rows.append(_tell(_ours(values, seconds, directory / f"run-{number}")))
    Console().print(_table(rows, values.profile))
    Console().print(conclusion(rows))
    if values.json is not None:
        document = [{"system": row.system, **row.quality.model_dump()} for row in rows]
        values.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0


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


def _naive(values: argparse.Namespace, rate: float, directory: Path) -> Row:
    job = QualityJob(
        profile=values.profile,
        assignments=tuple(values.set),
        budget_s=values.naive,
        learning_rate=rate,
        threads=read_cpu().usable_cores,
    )
    job_file, result = directory / "job.json", directory / "result.json"
    job_file.write_text(job.model_dump_json(), encoding="utf-8")
    module = ("-m", "tests.benchmarks.worker", "quality")
    subprocess.run([sys.executable, *module, str(job_file), str(result)], check=True, cwd=_ROOT)
    return Row(f"naive, lr {rate:g}", Quality.model_validate_json(result.read_text()))


def _ours(values: argparse.Namespace, seconds: float, run: Path) -> Row:
    command = [sys.executable, "-m", "llmtrain", "train", "--profile", values.profile, "--json"]
    command += ["--time", f"{seconds:g}s", "--out", str(run), "--quiet", "--force-cpu"]
    for assignment in values.set:
        command += ["--set", assignment]
    begun_s = time.monotonic()
    done = subprocess.run(command, check=True, cwd=_ROOT, stdout=subprocess.PIPE, env=os.environ)
    wall_s = time.monotonic() - begun_s  # with starting, compiling, evaluation and saving
    result = json.loads(done.stdout)
    return Row(
        "ours",
        Quality(
            seconds=wall_s,
            steps=result["steps"],
            tokens=result["tokens"],
            bits_per_byte=result["val_bpb"],
        ),
    )


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
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.time_to_quality",
        description=(__doc__ or "").partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--profile", default="cpu-tiny", help="whose size, text and tokens a step are trained")
    add("--naive", type=parse_duration_s, default="10m", help="how long the baseline trains")
    add("--learning-rates", type=_rates, default="6e-4", help="of the baseline, each a training")
    add("--ours", type=_durations, default="1m,2m", help="how long llmtrain trains")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="settings of the profile")
    add("--json", type=Path, metavar="PATH", help="write what was measured")
    return parser


def _durations(text: str) -> list[float]:
    return [parse_duration_s(part) for part in text.split(",")]


def _rates(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
