"""A comparison of models that take milliseconds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmtrain.profile.schema import ModelSection
from tests.benchmarks.comparison import Comparison
from tests.benchmarks.shapes import SHAPES


@pytest.fixture
def comparison() -> Comparison:
    """Ours and the naive baseline, at a toy shape, on random tokens."""
    model = ModelSection(
        vocab_size=500,
        hidden_size=16,
        intermediate_size=32,
        num_layers=2,
        num_heads=2,
        context=32,
    )
    return Comparison(
        shape=replace(SHAPES["tiny"], model=model, micro_batch=2),
        systems=("ours", "naive"),
        rounds=1,
        steps=3,
        warmup=1,
        threads=1,
        nproc=1,
        assignments=(),
        tokens="random",
        text="builtin:python",
        seed=0,
        nanogpt=None,
    )
