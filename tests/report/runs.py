"""A run directory as training leaves it, written without training: hostile, long, or damaged."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import yaml

HOSTILE = '</pre><script>alert(1)</script><img src="https://evil.example/x" onerror=alert(2)>\u202e'


def write_run(run: Path, steps: int = 100, **changes: Any) -> str:
    """Write a run of so many logged steps; `changes` are top-level keys of run.yaml."""
    run.mkdir()
    record = {
        "llmtrain": "0.2.0",
        "versions": {"python": "3.11", "torch": "2.13"},
        "profile": {"name": "p", "data": {"sources": [HOSTILE]}, "train": {"seed": 0}},
        "origins": {"data.sources": HOSTILE},
        "plan": {"threads": {"value": 2, "reason": "<b>cores</b>"}},
        "predicted": {"total_bytes": 2 << 30},
        "forecast": {"tokens_per_s": {"value": 1000.0, "low": None, "high": None}},
        "data": {
            "key": "0" * 32,
            "corpus_sha256": "a" * 64,
            "sources": [{"spec": HOSTILE, "files": 7}],
            "documents": {
                "documents": 200,
                "text_bytes": 5 << 20,
                "repeated_documents": 10,
                "repeated_bytes": 1 << 18,
                "length_bytes": [1, 20, 500, 4096, 9000, 70_000, 1 << 20],
            },
            "train_tokens": 1 << 20,
            "train_text_bytes": 4 << 20,
            "baselines": {"uniform_bpb": 3.5, "unigram_bpb": 2.5},
        },
        "sessions": [
            {"begun": "2026-11-29T07:00:00+00:00", "command": ["llmtrain", HOSTILE]},
            {"begun": "2026-11-29T08:00:00+00:00", "from_step": 40},
        ],
        "result": {
            "stopped": "done",
            "seconds": 12.0,
            "energy_joules": 7200.0,
            "trained_steps": 1000,
            "trained_tokens_per_step": 1000,
        },
        **changes,
    }
    (run / "run.yaml").write_text(yaml.safe_dump(record))
    lines: list[dict[str, object]] = []
    for step in range(1, steps + 1):
        loss = 2 + 5 * math.exp(-step / 40) + 0.1 * math.sin(step)
        at = {"tokens": 2048 * step, "elapsed_s": step / 3, "lr": 1e-3, "grad_norm": 1.0}
        lines.append({"step": step, "loss": loss, "memory_bytes": 1 << 30, **at})
        if step % max(20, steps // 100) == 0:
            lines.append({"step": step, "val_loss": loss + 0.2, "val_bpb": loss / 2})
    lines.append({"step": 50, "skipped": True, "reason": "spike"})
    (run / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    samples = [{"step": 10, "prompt": HOSTILE, "text": "\x1b[2J" + HOSTILE}]
    (run / "samples.jsonl").write_text("".join(json.dumps(each) + "\n" for each in samples))
    return str(run)
