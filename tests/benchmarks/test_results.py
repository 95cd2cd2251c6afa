"""The arithmetic of the table, by exact numbers."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from tests.benchmarks.comparison import Comparison
from tests.benchmarks.documents import Machine, Peaks, Prepared, Trained
from tests.benchmarks.own import step_seconds
from tests.benchmarks.process import Finished
from tests.benchmarks.report import document, footing, progress_line, table
from tests.benchmarks.results import Failure, Round, Run, Spread, summarise

FLOPS = 1000
PEAKS = Peaks(bf16_flops=1e6, fp32_flops=2e5)


def run_of(
    system: str, step_s: list[float], *, peak_bytes: int = 100, precision: str = "bf16"
) -> Run:
    return Run(
        round=1,
        system=system,
        command=[system],
        finished=Finished(0, 9.0, peak_bytes // 2, peak_bytes),
        trained=Trained(step_s=tuple(step_s), parameters=5, precision=precision),
        warmup=1,
        tokens_per_step=60,
    )


def test_a_rate_is_that_of_the_median_step_after_the_warm_up() -> None:
    assert run_of("ours", [99.0, 1.0, 2.0, 30.0]).tokens_per_s == 30


def test_ratios_are_taken_within_a_round() -> None:
    # A machine that slows down threefold between rounds: the ratio is 2 in each of them.
    rounds = [
        Round(PEAKS, [run_of("ours", [9, 1]), run_of("naive", [9, 2])], []),
        Round(PEAKS, [run_of("ours", [9, 3]), run_of("naive", [9, 6])], []),
    ]
    _, naive = summarise(rounds, ["ours", "naive"], FLOPS)
    assert naive.speed_ratio == Spread(2, 2, 2)
    assert naive.tokens_per_s == Spread(20, 10, 30)
    assert naive.first_step_s == Spread(9, 9, 9)


def test_memory_is_that_of_all_processes_together() -> None:
    runs = [run_of("ours", [9, 1], peak_bytes=200), run_of("naive", [9, 2], peak_bytes=500)]
    ours, naive = summarise([Round(PEAKS, runs, [])], ["ours", "naive"], FLOPS)
    assert ours.peak_bytes.median == 200
    assert naive.memory_ratio == Spread(2.5, 2.5, 2.5)


def test_a_system_is_held_against_the_peak_of_its_own_type() -> None:
    runs = [run_of("ours", [9, 1]), run_of("naive", [9, 1], precision="fp32")]
    ours, naive = summarise([Round(PEAKS, runs, [])], ["ours", "naive"], FLOPS)
    assert ours.utilisation.median == pytest.approx(60 * FLOPS / 1e6)
    assert naive.utilisation.median == pytest.approx(60 * FLOPS / 2e5)
    assert naive.bf16_utilisation.median == pytest.approx(60 * FLOPS / 1e6)


def test_what_failed_is_left_out_and_the_others_stay() -> None:
    failure = Failure(1, "ours", ["ours"], 1, "error: no")
    rounds = [Round(PEAKS, [run_of("naive", [9, 2])], [failure])]
    (naive,) = summarise(rounds, ["ours", "naive"], FLOPS)
    assert naive.speed_ratio is None
    assert naive.memory_ratio is None
    assert progress_line(failure).endswith("failed: error: no")


def test_steps_are_read_from_the_log_without_evaluations() -> None:
    lines = [
        {"step": 1, "tokens": 60, "tokens_per_s": 6.0},
        {"step": 2, "tokens": 120, "tokens_per_s": 30.0},
        {"step": 2, "val_loss": 5.0, "val_bpb": 2.0},
        {"step": 3, "tokens": 180, "tokens_per_s": 20.0},
    ]
    assert step_seconds(lines) == [10.0, 2.0, 3.0]


def test_everything_told_is_json_and_a_table(comparison: Comparison, tmp_path: object) -> None:
    machine = Machine(
        cpu="A CPU",
        architecture="x86_64",
        system="Linux",
        isa=("avx2",),
        logical_cores=4,
        physical_cores=2,
        usable_cores=2,
        memory_bytes=2**30,
    )
    prepared = Prepared.model_validate(
        {
            "machine": machine,
            "key": "k",
            "tokens_file": "t.bin",
            "dtype": "<u2",
            "tokens": 7,
            "sources": ("a.txt",),
            "tokenizer": "tokenizer",
            "tokenizer_pieces": 300,
        }
    )
    rounds = [Round(PEAKS, [run_of("ours", [9, 1]), run_of("naive", [9, 2])], [])]
    told = json.loads(json.dumps(document(comparison, prepared, rounds, "python …")))
    assert told["runs"][0]["trained"]["step_s"] == [9, 1]
    assert told["runs"][1]["tokens_per_s"] == 30
    assert told["summaries"][1]["speed_ratio"]["median"] == 2
    assert {"torch", "python", "llmtrain"} <= told["versions"].keys()
    console = Console(file=io.StringIO(), width=160)
    console.print(table(summarise(rounds, comparison.systems, FLOPS), "title"))
    console.print(footing(prepared, rounds))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "2.00×" in shown
    assert "A CPU, 2 usable cores" in shown
