"""Survey conversations before fine-tuning on them: what `llmtrain data inspect --chat` shows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmtrain.data.batches.conversations import answered_tokens
from llmtrain.data.batches.preferences import both_answers
from llmtrain.data.chat.preferences import read_preference
from llmtrain.data.chat.rows import read_conversation
from llmtrain.data.shards.token_stream import TokenArray
from llmtrain.engine.initial_model import directory_of_model
from llmtrain.engine.rows_kind import kind_of_rows
from llmtrain.errors import DataError
from llmtrain.prepare.chat import ChatEncoder, PreferenceEncoder
from llmtrain.prepare.context import PrepareContext
from llmtrain.prepare.dataset import resolve_corpus
from llmtrain.profile.schema import Profile
from llmtrain.progress import Note
from llmtrain.tokenizer.chat_template import ChatTemplate, with_chat_template
from llmtrain.tokenizer.of_model import tokenizer_of_model
from llmtrain.train.checkpoint.pretrained import shape_in


@dataclass(frozen=True, slots=True)
class ChatSegment:
    """A part of a rendered conversation."""

    text: str
    carries_loss: bool


@dataclass(frozen=True, slots=True)
class ChatReport:
    """A survey of conversations, as a model's chat template shows them."""

    model: Path
    marks_answers: bool
    conversations: int
    messages: int
    tokens: int
    answer_tokens: int
    context: int
    truncated: int
    left_out: int
    origin: str
    example: tuple[ChatSegment, ...]
    rejected: tuple[ChatSegment, ...] | None = None  # of a pair of answers


def inspect_chat(
    profile: Profile, model: str, work: PrepareContext, *, only_first: int | None
) -> ChatReport:
    """Return a survey of the profile's conversations for the model that `model` names.

    Every row is rendered. Raises DataError for the first that cannot be, with its place, and
    UsageError for an unknown model.
    """
    notes: list[str] = []
    directory = directory_of_model(model, notes)
    tokenizer, warnings = tokenizer_of_model(directory)
    for text in (*notes, *warnings):
        work.observe(Note(text))
    tokenizer = with_chat_template(tokenizer)
    context = min(profile.model.context, shape_in(directory).context)
    rows = kind_of_rows(resolve_corpus(profile.data.model_copy(update={"rows": "kind"}), work))
    section = profile.data.model_copy(update={"rows": rows})
    corpus = resolve_corpus(section, work)
    encoder = PreferenceEncoder(tokenizer) if rows == "preferences" else ChatEncoder(tokenizer)
    counts = np.zeros(6, dtype=np.int64)
    origin, examples = "", list[tuple[ChatSegment, ...]]()
    for document in itertools.islice(corpus.documents(), only_first):
        work.check_stop()
        values = np.array(encoder.encode_document(document.text, document.origin))
        answers = both_answers(values, encoder.marks)
        if not origin:
            origin = document.origin
            examples = [_segments(encoder, each) for each in answers]
        counts += _counts(document.text, answers, encoder, context)
    if not origin:
        raise DataError("there are no conversations in the data", hint="add rows with --data")
    conversations, messages, tokens, answer_tokens, truncated, left_out = counts.tolist()
    return ChatReport(
        model=directory,
        marks_answers=encoder.template.marks_answers,
        conversations=conversations,
        messages=messages,
        tokens=tokens,
        answer_tokens=answer_tokens,
        context=context,
        truncated=truncated,
        left_out=left_out,
        origin=origin,
        example=examples[0],
        rejected=examples[1] if len(examples) > 1 else None,
    )


def _counts(
    text: str, answers: Sequence[TokenArray], encoder: ChatEncoder, context: int
) -> tuple[int, ...]:
    """Return 1, and of the document: messages, tokens, targets, if it is cut, and if left out."""
    spoken = [encoder.marks.is_assistant(each) for each in answers]
    tokens, targets = sum(map(len, answers)), sum(int(each[1:].sum()) for each in spoken)
    if len(answers) > 1:
        pair = read_preference(text)
        messages = len(pair.prompt) + len(pair.chosen) + len(pair.rejected)
        return 1, messages, tokens, targets, 0, int(tokens > context)
    length, is_truncated = answered_tokens(spoken[0], context)
    messages = len(read_conversation(text))
    return 1, messages, tokens, targets, int(is_truncated), int(length == 0)


def _segments(encoder: ChatEncoder, values: TokenArray) -> tuple[ChatSegment, ...]:
    marks = encoder.marks
    return segments(
        encoder.template, marks.ids(values).tolist(), marks.is_assistant(values).tolist()
    )


def segments(
    template: ChatTemplate, ids: list[int], is_assistant: list[bool]
) -> tuple[ChatSegment, ...]:
    """Return the text of tokens, cut where it begins or ends to carry loss.

    Control tokens are shown by their names. The first token carries none: nothing precedes it.
    """
    names = {token: name for name, token in template.tokenizer.controls().items()}
    found = []
    loss = [False, *is_assistant[1:]]
    for carries_loss, group in itertools.groupby(zip(loss, ids, strict=True), key=lambda x: x[0]):
        parts = itertools.groupby((token for _, token in group), key=lambda t: names.get(t))
        text = "".join(
            name * len(list(tokens)) if name else template.tokenizer.decode(list(tokens))
            for name, tokens in parts
        )
        found.append(ChatSegment(text, carries_loss))
    return tuple(found)
