"""Evaluation on conversations: the loss of what the assistant says, and exact answers."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from llmtrain.choice import Precision
from llmtrain.data.batches.conversations import (
    END,
    ConversationReader,
    pack_conversations,
    read_conversations,
)
from llmtrain.data.batches.windows import Tokens
from llmtrain.data.corpus import Corpus
from llmtrain.data.shards.token_stream import TokenArray
from llmtrain.eval.evaluate import Window, token_losses
from llmtrain.eval.questions import (
    SHORT_TOKENS,
    ExactMatches,
    Question,
    count_exact,
    short_questions,
)
from llmtrain.eval.segments import SegmentLosses
from llmtrain.generate.generator import TextGenerator
from llmtrain.generate.sampling import Sampling
from llmtrain.generate.text import TextRequest
from llmtrain.model.decoder import Decoder
from llmtrain.ops.precision import autocast_as
from llmtrain.plan.inference_memory import EVALUATION_TOKENS
from llmtrain.prepare.chat import ChatEncoder
from llmtrain.prepare.context import PrepareContext
from llmtrain.tokenizer import Tokenizer


class MemoryTokens:
    """Tokens in memory, to be read as a stream."""

    def __init__(self, values: TokenArray) -> None:
        self.values = values
        self.num_tokens = len(values)

    def read(self, start: int, count: int) -> TokenArray:
        """Return `count` tokens from `start` on."""
        return self.values[start : start + count]


def encoded_conversations(
    corpus: Corpus, encoder: ChatEncoder, work: PrepareContext
) -> MemoryTokens:
    """Return the marked tokens of a corpus. Raises DataError, naming the row."""
    parts = [[encoder.separator_id]]
    for document in corpus.documents():
        work.check_stop()
        parts.append(encoder.encode_document(document.text, document.origin))
        parts.append([encoder.separator_id])
    return MemoryTokens(np.array(list(itertools.chain.from_iterable(parts)), dtype=np.int64))


@dataclass(frozen=True, slots=True)
class ConversationLoss:
    """The loss of the assistant's tokens, the text that they spell, and exact answers."""

    losses: SegmentLosses  # a segment is the assistant's part of a conversation
    texts: list[str]
    exact: ExactMatches

    @property
    def text_bytes(self) -> int:
        """The bytes of the text."""
        return sum(len(text.encode()) for text in self.texts)


def evaluate_conversations(
    model: Decoder,
    encoder: ChatEncoder,
    stream: Tokens,
    work: PrepareContext,
    *,
    questions: int,
    precision: Precision,
) -> ConversationLoss:
    """Return the loss of all answers in a stream, and of `questions` how many are exact.

    Raises DataError if no answer fits into the model's context.
    """
    marks, context = encoder.marks, model.shape.context
    packed = pack_conversations(stream, marks, context, check_stop=work.check_stop)
    reader = ConversationReader(stream, packed, marks, context, seed=0)
    tokenizer = encoder.template.tokenizer
    losses = _losses_by_conversation(
        token_losses(
            model,
            _windows(reader),
            micro_batch=max(1, EVALUATION_TOKENS // context),
            autocast=partial(autocast_as, precision, model.head_weight.device),
            check_stop=work.check_stop,
        ),
        tokenizer,
    )
    texts = [
        tokenizer.decode(marks.ids(values[marks.is_assistant(values)]).tolist())
        for _, values in read_conversations(stream, marks)
    ]
    asked = itertools.islice(short_questions(read_conversations(stream, marks), marks), questions)

    generator = TextGenerator(model, tokenizer, precision)
    ends = frozenset(encoder.template.stop_ids)

    def answer(question: Question) -> str:
        work.check_stop()
        prompt = tuple(question.prompt)
        request = TextRequest(prompt, Sampling(temperature=0.0), SHORT_TOKENS, ends=ends)
        return "".join(piece.text for piece in generator.generate(request))

    return ConversationLoss(losses, texts, count_exact(asked, answer, tokenizer.decode))


def _losses_by_conversation(
    parts: Iterable[tuple[NDArray[np.int64], NDArray[np.float64]]], tokenizer: Tokenizer
) -> SegmentLosses:
    """Add up the losses of each conversation's answers; END is the target that ends one."""
    targets, nats = (np.concatenate(each) for each in zip(*parts, strict=True))
    conversations = np.cumsum(targets == END) - (targets == END)
    is_target = targets >= 0
    bytes_of = np.array([len(tokenizer.spell(token)) for token in range(tokenizer.vocab_size)])
    answered, places = np.unique(conversations[is_target], return_inverse=True)
    count = len(answered)
    return SegmentLosses(
        documents=answered,
        segments=np.zeros(count, dtype=np.int64),
        nats=_sums(places, nats[is_target], count),
        tokens=np.bincount(places, minlength=count),
        bytes=_sums(places, bytes_of[targets[is_target]], count).astype(np.int64),
    )


def _sums(
    places: NDArray[np.int64], values: NDArray[np.float64] | NDArray[np.int64], count: int
) -> NDArray[np.float64]:
    sums = np.zeros(count)
    np.add.at(sums, places, values)
    return sums


def _windows(reader: ConversationReader) -> Iterator[Window]:
    for position in range(reader.num_windows):
        inputs, targets = reader.read(position, 1)
        yield inputs[0], targets[0]
