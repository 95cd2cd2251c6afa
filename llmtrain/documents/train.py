"""What a training run ended with."""

from __future__ import annotations

from collections.abc import Sequence

from typing_extensions import Self

from llmtrain.documents.base import (
    Document,
    Number,
    Part,
    Text,
    Threshold,
    key,
    optional,
    present,
    thresholds,
)
from llmtrain.train.events import Stopped, TrainResult


class Predicted(Part):
    """The prediction made before a run."""

    peak_memory_bytes: int = optional(
        "the peak of `peak_memory_bytes`; missing where nothing was trained"
    )
    tokens_per_s: Number = optional("the rate; missing or null: not predicted")
    seconds: Number = optional("of the whole run; missing or null: not predicted")


class Train(Document):
    """`llmtrain train`, also where it was interrupted."""

    run: Text = key("the run directory")
    checkpoint: Text | None = key("the last checkpoint; null: none was saved")
    steps: int = key("optimizer steps since the run began")
    tokens: int = key("tokens trained on since the run began")
    seconds: float = key("seconds of all sessions of the run")
    tokens_per_s: Number = key("tokens a second in this session; null: it did no step")
    train_loss: Number = key("of the last logged step, nats per token")
    val_loss: Number = key("of the last evaluation, nats per token; null: there was none")
    val_bpb: Number = key("of the last evaluation, bits per byte; null: there was none")
    peak_memory_bytes: int = key(
        "the most bytes of the device's memory: resident in all processes, or reserved by torch "
        "on the GPU that holds most"
    )
    energy_joules: Number = key(
        "what this machine's CPU packages and the run's GPUs used in this session, whoever used "
        "them; null: nothing here counts it"
    )
    predicted: Predicted = key("what was predicted of this")
    stopped: Stopped = key("why it ended: all steps done, the time is up, or by a signal")
    thresholds: list[Threshold] = thresholds("`--max-loss`")

    @classmethod
    def of_result(cls, result: TrainResult, limits: Sequence[object]) -> Self:
        """Return the document of a training run; `limits`: the thresholds that were set."""
        predicted = {
            "peak_memory_bytes": result.predicted_peak_bytes,
            "tokens_per_s": result.predicted_tokens_per_s,
            "seconds": result.predicted_seconds,
        }
        was_trained = result.predicted_peak_bytes is not None
        return cls.of(
            result, predicted=predicted if was_trained else {}, **present(thresholds=limits)
        )
