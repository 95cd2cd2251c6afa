"""The result of a sitting in which nothing was trained."""

from __future__ import annotations

from dataclasses import replace

from llmtrain.engine.resume import Target
from llmtrain.train.checkpoint.format import Checkpoint, SavedState
from llmtrain.train.events import TrainResult


def result_of(target: Target, state: SavedState) -> TrainResult:
    """What a checkpoint says came out of the run so far."""
    return TrainResult(
        run=target.directory.path,
        checkpoint=target.checkpoint,
        steps=state.step,
        tokens=state.tokens,
        seconds=state.elapsed_s,
        tokens_per_s=None,
        train_loss=state.train_loss,
        val_loss=state.val_loss,
        val_bpb=state.val_bpb,
        peak_memory_bytes=state.peak_memory_bytes,
        predicted_peak_bytes=None,
        stopped="done",
        already_finished=True,
    )


def nothing_trained(target: Target, resumed: Checkpoint | None) -> TrainResult:
    """The result of a sitting that was interrupted before a step; data done is cached."""
    if resumed is not None:
        before = result_of(target, resumed.state)
        return replace(before, stopped="interrupted", already_finished=False)
    return TrainResult(
        run=target.directory.path,
        checkpoint=None,
        steps=0,
        tokens=0,
        seconds=0.0,
        tokens_per_s=None,
        train_loss=None,
        val_loss=None,
        val_bpb=None,
        peak_memory_bytes=0,
        predicted_peak_bytes=None,
        stopped="interrupted",
    )
