"""A profile that trains a step in a few milliseconds, and text that takes a moment to prepare."""

from __future__ import annotations

import random
from pathlib import Path

PROFILE = """\
name: tiny
model: {vocab_size: 600, hidden_size: 64, intermediate_size: 128, num_layers: 2, num_heads: 2,
        context: 32}
data: {sources: [corpus.txt], validation_fraction: 0.1}
train: {tokens_per_step: 512, steps: 20, log_every_steps: 1}
optim: {warmup_steps: 5}
eval: {every_steps: 10, tokens: 8192, sample_every_steps: 10, sample_tokens: 16}
device: {kind: cpu, threads: 1, precision: fp32}
"""


def furnish(directory: Path, lines: int = 4000) -> Path:
    """The profile in `directory`, beside its text; sources are relative to that directory."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 7))) for _ in range(300)]
    text = "\n".join(" ".join(draw.choices(words, k=9)) for _ in range(lines))
    (directory / "corpus.txt").write_text(text, encoding="utf-8")
    profile = directory / "tiny.yaml"
    profile.write_text(PROFILE, encoding="utf-8")
    return profile
