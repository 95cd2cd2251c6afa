"""Evaluate a trained model: on the validation text of its run, on other text, on conversations."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmtrain.data.batches.windows import Tokens, sequential_windows, windows_of
from llmtrain.data.corpus import Corpus
from llmtrain.data.shards.prepared import PreparedData
from llmtrain.data.sources.resolve import resolve_sources
from llmtrain.engine.evaluate_chat import encoded_conversations, evaluate_conversations
from llmtrain.engine.evaluate_preferences import (
    PreferenceScores,
    chosen_conversations,
    first_model,
    score_preferences,
)
from llmtrain.engine.inference import Trained, load_trained
from llmtrain.engine.rows_kind import kind_of_rows
from llmtrain.errors import DataError, UsageError
from llmtrain.eval.baselines import Baselines, measure_baselines
from llmtrain.eval.bootstrap import Interval, bits_per_byte_interval
from llmtrain.eval.evaluate import LossSum, Window, bits_per_byte, token_losses
from llmtrain.eval.questions import ExactMatches
from llmtrain.eval.segments import SegmentLosses, SegmentMeter
from llmtrain.plan.inference_memory import EVALUATION_TOKENS
from llmtrain.prepare.chat import ChatEncoder, PreferenceEncoder
from llmtrain.prepare.context import PrepareContext
from llmtrain.prepare.dataset import open_dataset
from llmtrain.profile.load import profile_from_values
from llmtrain.profile.schema import DeviceSection
from llmtrain.tokenizer import Tokenizer
from llmtrain.tokenizer.streams import decoded_parts, encoded_document
from llmtrain.train.events import Observer
from llmtrain.train.readers import masking_separator
from llmtrain.train.run_directory.record import data_key

Texts = Callable[[], Iterator[str]]  # the documents of a text, as often as it is called
READ_TOKENS = 1 << 16  # at once, of shards that are decoded for the baselines


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The loss of a model on a text, beside baselines that need no model."""

    checkpoint: Path
    loss_nats_per_token: float
    perplexity: float
    bits_per_byte: float
    tokens: int
    bytes: int
    baselines: Baselines
    interval: Interval  # of the bits per byte
    losses: SegmentLosses
    answers: ExactMatches | None = None  # of conversations
    preferences: PreferenceScores | None = None  # of pairs of answers


def evaluate_run(
    run: str,
    data: Sequence[str],
    device: DeviceSection,
    observe: Observer,
    check_stop: Callable[[], None],
    text_field: str = "text",
    questions: int = 100,
) -> Evaluation:
    """Evaluate on all of the run's validation text, or on all of `data`.

    Documents are masked where the run was trained so. Where it was trained on conversations, the
    loss is that of what the assistant says, and up to `questions` are answered.
    """
    trained = load_trained(run, device, observe)
    work = PrepareContext(trained.plan.workers.value, observe, check_stop)
    mask_as_trained(trained)
    chat = ChatEncoder(trained.tokenizer) if is_of_conversations(trained.record) else None
    if data and chat is not None:
        rows = kind_of_rows(resolve_sources(data, rows="kind"))
        if rows == "preferences":
            chat = PreferenceEncoder(trained.tokenizer)
        tokens = encoded_conversations(resolve_sources(data, rows=rows), chat, work)
        return _evaluate_chat(trained, chat, tokens, None, work, questions)
    if data:
        return evaluate_corpus(trained, resolve_sources(data, text_field=text_field), work)
    with validation_shards(trained.record, trained.checkpoint, run, work) as shards:
        if chat is not None:
            if shards.index.encoder_fingerprint != chat.fingerprint:  # opened for the run's rows
                chat = PreferenceEncoder(trained.tokenizer)
            return _evaluate_chat(trained, chat, shards.validation, shards, work, questions)
        return evaluate_shards(trained, shards, work)


def is_of_conversations(record: Mapping[str, Any] | None) -> bool:
    """Return whether the run of this record was trained on conversations."""
    if record is None:
        return False
    return profile_from_values(record["profile"], "run.yaml").data.has_conversations


@contextmanager
def validation_shards(
    record: Mapping[str, Any] | None, checkpoint: Path, run: str, work: PrepareContext
) -> Iterator[PreparedData]:
    """Yield the shards that a run was trained and validated on.

    Raises UsageError where the checkpoint lies in no run, and DataError where they cannot be used.
    """
    if record is None:
        raise UsageError(
            f"{checkpoint} lies in no run directory, so its validation text is not known",
            hint=f"llmtrain eval {shlex.quote(run)} --data FILE",
        )
    profile, key = profile_from_values(record["profile"], "run.yaml"), data_key(record, run)
    vocab_size, context = profile.model.vocab_size, profile.model.context
    dataset = open_dataset(profile.data, vocab_size, key, checkpoint, work, context)
    with closing(dataset.shards):
        yield dataset.shards


def mask_as_trained(trained: Trained) -> None:
    """Mask documents from each other if the run was trained so."""
    if trained.record is None:
        return
    model, section = trained.model, profile_from_values(trained.record["profile"], "run.yaml").data
    model.separator_id = masking_separator(section, trained.tokenizer.separator_id)
    if model.separator_id is not None and trained.plan.device.value == "cpu":
        model.compute_with(attention="blocks")  # torch's kernel wants a mask of all pairs


def _evaluate_chat(
    trained: Trained,
    encoder: ChatEncoder,
    stream: Tokens,
    shards: PreparedData | None,
    work: PrepareContext,
    questions: int,
) -> Evaluation:
    """Evaluate on a stream of conversations, or of pairs: then on the chosen answers too."""
    trained.model.has_padding = True
    scores, precision = None, trained.plan.precision.value
    if isinstance(encoder, PreferenceEncoder):
        first = first_model(trained.record, trained.checkpoint, precision, trained.model)
        scores = score_preferences(trained.model, first, stream, encoder.marks, shards, work)
        stream = chosen_conversations(stream, encoder.marks)
    found = evaluate_conversations(
        trained.model,
        encoder,
        stream,
        work,
        questions=questions,
        precision=precision,
    )
    evaluation = _evaluation(
        trained,
        found.losses,
        found.texts,
        text_bytes=max(1, found.text_bytes),
        unigram_nats_per_token=None,
    )
    answers = found.exact if found.exact.questions else None
    return replace(evaluation, answers=answers, preferences=scores)


def evaluate_shards(trained: Trained, shards: PreparedData, work: PrepareContext) -> Evaluation:
    """Evaluate on the validation side of shards that the model's own tokenizer made."""
    stream = shards.validation
    losses = _losses(trained, sequential_windows(stream, trained.model.shape.context), work)
    starts = range(0, stream.num_tokens, READ_TOKENS)
    batches = (
        stream.read(start, min(READ_TOKENS, stream.num_tokens - start)).tolist() for start in starts
    )
    return _evaluation(
        trained,
        losses,
        decoded_parts(trained.tokenizer, batches),
        text_bytes=shards.index.validation.text_bytes,
        unigram_nats_per_token=shards.index.unigram_cross_entropy_nats,
    )


def evaluate_corpus(trained: Trained, corpus: Corpus, work: PrepareContext) -> Evaluation:
    """Evaluate on text other than the run's, tokenized while it is read."""
    return evaluate_texts(trained, lambda: (document.text for document in corpus.documents()), work)


def evaluate_texts(trained: Trained, texts: Texts, work: PrepareContext) -> Evaluation:
    """Evaluate on documents, which are read twice. Raises DataError if there is no text."""
    encoded = _EncodedTexts(texts, trained.tokenizer, work.check_stop)
    windows = windows_of(encoded.batches(), trained.model.shape.context)
    losses = _losses(trained, windows, work)
    if encoded.text_bytes == 0:
        raise DataError("there is no text to evaluate on", hint="name a file with --data")
    return _evaluation(
        trained,
        losses,
        texts(),
        text_bytes=encoded.text_bytes,
        unigram_nats_per_token=None,
    )


@dataclass(slots=True)
class _EncodedTexts:
    """The token ids of documents, with their size in bytes as far as they were read."""

    texts: Texts
    tokenizer: Tokenizer
    check_stop: Callable[[], None]
    text_bytes: int = 0

    def batches(self) -> Iterator[NDArray[np.int64]]:
        """Yield ids of each document, at most a few million at once, each after a separator."""
        end_id, separator = self.tokenizer.end_id, np.array([self.tokenizer.separator_id])
        end = separator if end_id is None else np.array([end_id, *separator])
        yield separator
        for text in self.texts():
            for ids in encoded_document(self.tokenizer, text):
                self.check_stop()
                yield np.array(ids, dtype=np.int64)
            yield end
            self.text_bytes += len(text.encode())


def _losses(trained: Trained, windows: Iterable[Window], work: PrepareContext) -> SegmentLosses:
    """Return the loss of every token but the first, each predicted from those in its window."""
    tokenizer = trained.tokenizer
    meter = SegmentMeter(tokenizer.vocab_size, tokenizer.separator_id, tokenizer.spell)
    for targets, nats in token_losses(
        trained.model,
        windows,
        micro_batch=max(1, EVALUATION_TOKENS // trained.model.shape.context),
        autocast=trained.autocast,
        check_stop=work.check_stop,
    ):
        meter.add(targets, nats)
    return meter.losses()


def _evaluation(
    trained: Trained,
    losses: SegmentLosses,
    texts: Iterable[str],
    *,
    text_bytes: int,
    unigram_nats_per_token: float | None,
) -> Evaluation:
    """Return the loss in all its units, with the baselines of the same text."""
    loss = LossSum(float(losses.nats.sum()), int(losses.tokens.sum()))
    return Evaluation(
        checkpoint=trained.checkpoint,
        loss_nats_per_token=loss.nats_per_token,
        perplexity=loss.perplexity,
        bits_per_byte=bits_per_byte(loss.nats_per_token, loss.tokens, text_bytes),
        tokens=loss.tokens,
        bytes=text_bytes,
        baselines=measure_baselines(
            texts,
            pieces=trained.tokenizer.vocab_size,
            tokens=loss.tokens,
            text_bytes=text_bytes,
            unigram_nats_per_token=unigram_nats_per_token,
        ),
        interval=bits_per_byte_interval(losses),
        losses=losses,
    )
