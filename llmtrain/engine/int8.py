"""Generate with weights in int8: what it needs, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass

from llmtrain.engine.export_sample import loss_on, sample_text
from llmtrain.engine.inference import Trained
from llmtrain.errors import UsageError
from llmtrain.generate.native.library import load_decode_step
from llmtrain.generate.weights import round_to_int8
from llmtrain.machine.probe import read_facts
from llmtrain.prepare.context import PrepareContext
from llmtrain.progress import Note

_SAMPLE_CHARACTERS = 4 << 10  # before every call: both losses are of the same text


@dataclass(frozen=True, slots=True)
class Int8Cost:
    """The cost of weights in int8, in bits per byte of a sample of text."""

    text: str
    text_bytes: int
    bits_per_byte_before: float
    bits_per_byte_after: float


def round_weights(trained: Trained, work: PrepareContext) -> Int8Cost:
    """Round the matrices of a model to int8, with a scale for each row; return what that costs.

    Raises UsageError where there is no compiled step, which alone computes with int8.
    """
    _require_step(trained, work)
    sample = sample_text(trained, (), work)
    text = sample.text[:_SAMPLE_CHARACTERS]
    before = loss_on(trained, text, work)
    round_to_int8(trained.model)
    after = loss_on(trained, text, work)
    return Int8Cost(sample.name, before.text_bytes, before.bits_per_byte, after.bits_per_byte)


def _require_step(trained: Trained, work: PrepareContext) -> None:
    plan = trained.plan
    reason = None
    if plan.device.value != "cpu":
        reason = f"it computes on the CPU, and the device is {plan.device.value}"
    elif plan.precision.value != "bf16":
        reason = f"the model is used in {plan.precision.value}: {plan.precision.reason}"
    else:
        loaded = load_decode_step(
            read_facts(tries_gpus=False), lambda text: work.observe(Note(text))
        )
        reason = None if loaded.value else loaded.reason
    if reason is not None:
        raise UsageError(
            f"--quant int8 needs the compiled step: {reason}", hint="leave out --quant"
        )
