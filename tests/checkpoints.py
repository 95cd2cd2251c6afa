"""A checkpoint's state for tests that are about its weights."""

from __future__ import annotations

from llmtrain.train.checkpoint.format import SavedState
from llmtrain.train.divergence.policy import DivergenceState

STATE = SavedState(
    step=1,
    tokens=1,
    windows=1,
    elapsed_s=0,
    horizon_steps=None,
    torch_rng="",
    numerics={},
    course=DivergenceState(),
)
