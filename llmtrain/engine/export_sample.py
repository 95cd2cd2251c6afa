"""Text on which an exported model is compared with the one it was made from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass

import numpy as np

from llmtrain.data.batches.windows import windows_of
from llmtrain.data.sources.resolve import BUILTIN_PYTHON, resolve_sources
from llmtrain.engine.inference import Trained
from llmtrain.errors import DataError, LlmtrainError
from llmtrain.eval.baselines import Baselines, measure_baselines
from llmtrain.eval.evaluate import bits_per_byte, sum_loss
from llmtrain.prepare.chat import encoder_of
from llmtrain.prepare.context import PrepareContext
from llmtrain.prepare.dataset import open_dataset
from llmtrain.profile.load import profile_from_values
from llmtrain.progress import Note
from llmtrain.tokenizer.streams import decoded_parts
from llmtrain.train.run_directory.record import data_key

_SAMPLE_CHARACTERS = 16 << 10
_READ_TOKENS = 1 << 12


@dataclass(frozen=True, slots=True)
class SampleText:
    """The beginning of a text, and a description of the text."""

    text: str
    name: str


def sample_text(trained: Trained, data: Sequence[str], work: PrepareContext) -> SampleText:
    """Return text of `data`, else the run's validation text, else Python's standard library.

    Raises DataError if `data` has no text.
    """
    if data:
        return SampleText(_text_of(data, work), " ".join(data))
    if trained.record is not None:
        try:
            return SampleText(_validation_text(trained, work), "the run's validation text")
        except LlmtrainError as error:
            note = f"the run's validation text cannot be read ({error.message}); compared on"
            work.observe(Note(f"{note} {BUILTIN_PYTHON}", is_warning=True))
    return SampleText(_text_of([BUILTIN_PYTHON], work), BUILTIN_PYTHON)


def _text_of(data: Sequence[str], work: PrepareContext) -> str:
    text = ""
    for document in resolve_sources(data).documents():
        work.check_stop()
        text += document.text[: _SAMPLE_CHARACTERS - len(text)]
        if len(text) == _SAMPLE_CHARACTERS:
            break
    if not text:
        raise DataError("there is no text to compare on", hint="name a file with --data")
    return text


def _validation_text(trained: Trained, work: PrepareContext) -> str:
    assert trained.record is not None
    profile = profile_from_values(trained.record["profile"], "run.yaml")
    key = data_key(trained.record, str(trained.checkpoint))
    model = profile.model
    dataset = open_dataset(
        profile.data, model.vocab_size, key, trained.checkpoint, work, model.context
    )
    with closing(dataset.shards):
        stream = dataset.shards.validation
        batches = (
            stream.read(start, min(_READ_TOKENS, stream.num_tokens - start)).tolist()
            for start in range(0, stream.num_tokens, _READ_TOKENS)
        )
        text = ""
        parts: Iterator[str]
        if profile.data.has_conversations:
            parts = map(encoder_of(profile.data, trained.tokenizer).decode, batches)
        else:
            parts = decoded_parts(trained.tokenizer, batches)
        for part in parts:
            text += part
            if len(text) >= _SAMPLE_CHARACTERS:
                break
    return text[:_SAMPLE_CHARACTERS]


@dataclass(frozen=True, slots=True)
class SampleLoss:
    """The loss of a model on a sample."""

    bits_per_byte: float
    tokens: int
    text_bytes: int


def loss_on(trained: Trained, text: str, work: PrepareContext) -> SampleLoss:
    """Return the loss of the model as it is now, computed in fp32."""
    tokenizer, context = trained.tokenizer, trained.model.shape.context
    ids = np.array([tokenizer.separator_id, *tokenizer.encode(text)], dtype=np.int64)
    loss = sum_loss(
        trained.model,
        windows_of([ids], context),
        micro_batch=1,
        autocast=nullcontext,
        check_stop=work.check_stop,
    )
    text_bytes = len(text.encode())
    bpb = bits_per_byte(loss.nats_per_token, loss.tokens, text_bytes)
    return SampleLoss(bpb, loss.tokens, text_bytes)


def baselines_on(trained: Trained, sample: SampleText, loss: SampleLoss) -> Baselines:
    """Return what needs no model, on the same sample."""
    return measure_baselines(
        [sample.text],
        pieces=trained.tokenizer.vocab_size,
        tokens=loss.tokens,
        text_bytes=loss.text_bytes,
        unigram_nats_per_token=None,
    )
