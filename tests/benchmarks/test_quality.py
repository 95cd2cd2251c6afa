"""The comparison by quality: its arithmetic, and a baseline that learns in a second."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
import torch
from torch import nn

from llmtrain.data.shards.prepared import PreparedData
from llmtrain.profile.load import load_profile
from tests.benchmarks.documents import CurvePoint, Quality, QualityJob
from tests.benchmarks.quality import Work, _factor, train_for_quality
from tests.benchmarks.time_to_quality import Row, _read, _write, conclusion


def row(system: str, seconds: float, tokens: int, bits_per_byte: float) -> Row:
    quality = Quality(seconds=seconds, steps=1, tokens=tokens, bits_per_byte=bits_per_byte)
    return Row(system=system, asked=f"{system} {seconds}", quality=quality)


def test_ours_is_compared_with_the_best_of_the_others() -> None:
    rows = [
        row("naive, lr 1", 600, 1000, 2.5),
        row("naive, lr 2", 600, 1200, 2.0),
        row("ours", 30, 100, 2.1),
        row("ours", 60, 200, 1.9),
        row("ours", 120, 400, 1.7),
    ]
    told = conclusion(rows)
    assert told == "as good as naive, lr 2 in 10.0 times less time and 6.0 times fewer tokens"
    assert conclusion(rows[:3]) == "none of ours is as good as naive, lr 2"


def test_the_rate_rises_and_falls_to_a_tenth() -> None:
    found = [_factor(i / 100) for i in range(101)]
    assert found.index(max(found)) == 5
    assert max(found) == pytest.approx(1.0)
    assert found[-1] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("windows", "context", "expected"), [(32, 256, 16), (6, 1024, 3), (5, 4096, 1)]
)
def test_a_micro_batch_divides_the_step(windows: int, context: int, expected: int) -> None:
    settings = (f"model.context={context}", f"train.tokens_per_step={windows * context}")
    job = QualityJob(
        profile="cpu-tiny", assignments=settings, steps=1, learning_rate=1.0, threads=1
    )
    profile = load_profile(job.profile, environment={}, assignments=settings).profile
    work = Work(job, profile, cast("PreparedData", None), nn.Identity())
    assert work.micro_batch == expected


def test_the_baseline_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMTRAIN_CACHE_DIR", str(tmp_path / "cache"))
    text = tmp_path / "text.txt"
    text.write_text("".join(f"line {i % 50} of a text that repeats itself\n" for i in range(3000)))
    settings = {
        "data.sources": f"[{text.as_posix()}]",
        "model.vocab_size": 320,
        "model.hidden_size": 16,
        "model.intermediate_size": 32,
        "model.num_layers": 1,
        "model.num_heads": 1,
        "model.context": 32,
        "train.tokens_per_step": 256,
        "eval.tokens": 512,
    }
    threads = torch.get_num_threads()
    found = [
        train_for_quality(
            QualityJob(
                profile="cpu-tiny",
                assignments=tuple(f"{key}={value}" for key, value in settings.items()),
                budget_s=budget_s,
                learning_rate=1e-2,
                threads=threads,
            )
        )
        for budget_s in (0.01, 1.5)
    ]
    assert found[0].bits_per_byte > found[1].bits_per_byte
    assert found[1].steps > found[0].steps
    assert found[1].tokens == 256 * found[1].steps
    assert found[1].seconds >= 1.5


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from tests.benchmarks.quality_plot import draw

    way = (CurvePoint(seconds=5, tokens=50, bits_per_byte=3.0),)
    points = [
        ("naive", Quality(seconds=10, steps=1, tokens=99, bits_per_byte=2.0, curve=way)),
        ("ours", Quality(seconds=2, steps=1, tokens=20, bits_per_byte=2.1)),
        ("ours", Quality(seconds=4, steps=1, tokens=40, bits_per_byte=1.8)),
    ]
    draw(points, "a title", tmp_path / "plot.svg")
    drawn = (tmp_path / "plot.svg").read_text(encoding="utf-8")
    assert "<svg" in drawn


def test_what_was_trained_is_not_trained_again(tmp_path: Path) -> None:
    rows = [row("ours", 30, 100, 2.1)]
    _write(tmp_path / "rows.json", rows)
    assert _read(tmp_path / "rows.json") == rows
    assert _read(tmp_path / "none.json") == []
    assert _read(None) == []
