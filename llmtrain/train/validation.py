"""The held-out side of a run's data: its windows, its size as text, and prompts for samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from llmtrain.data.batches.conversations import (
    ConversationReader,
    pack_conversations,
    read_conversations,
)
from llmtrain.data.batches.preferences import (
    PreferenceReader,
    References,
    both_answers,
    pack_preferences,
)
from llmtrain.data.batches.windows import BatchReader, WindowReader
from llmtrain.data.chat.marks import Marks
from llmtrain.data.shards.prepared import PreparedData
from llmtrain.data.shards.token_stream import TokenStream
from llmtrain.profile.schema import Profile
from llmtrain.tokenizer import Tokenizer
from llmtrain.tokenizer.chat_template import ChatTemplate
from llmtrain.train.sample_prompts import sample_prompts

_QUESTIONS = 2  # of held-back conversations, that samples answer


@dataclass(frozen=True, slots=True)
class ChatPrompts:
    """The prompts of samples of conversations, and the ids at which these end."""

    ids: Mapping[str, Sequence[int]]
    stop_ids: frozenset[int]


@dataclass(frozen=True, slots=True)
class Validation:
    """The validation data of a run, and the prompts of its samples."""

    reader: WindowReader
    tokens: int  # targets of all the text,
    text_bytes: int  # and what they spell
    prompts: tuple[str, ...] = ()
    chat: ChatPrompts | None = field(default=None)  # None: prompts are text to continue


def open_validation(
    profile: Profile,
    data: PreparedData,
    tokenizer: Tokenizer,
    references: References | None = None,
) -> Validation:
    """Return the validation side of a run's data. Raises DataError if it is too short.

    `references`: of pairs of answers.
    """
    context = profile.model.context
    if profile.data.rows == "text":
        facts = data.index.validation
        return Validation(
            BatchReader(data.validation, context, seed=0),
            facts.tokens,
            facts.text_bytes,
            sample_prompts(profile, tokenizer, data.validation),
        )
    marks = Marks(tokenizer.vocab_size)
    reader: WindowReader
    if references is None:
        packed = pack_conversations(data.validation, marks, context)
        reader = ConversationReader(data.validation, packed, marks, context, seed=0)
    else:
        pairs = pack_preferences(data.validation, marks, context)
        reader = PreferenceReader(data.validation, pairs, marks, context, 0, references)
    tokens, text_bytes = answers_size(data.validation, marks, tokenizer)
    template = ChatTemplate.of(tokenizer)
    if profile.eval.prompts == "auto":
        ids = _questions(data.validation, marks, tokenizer)
    else:
        ids = {
            text: template.encode([{"role": "user", "content": text}], add_generation_prompt=True)
            for text in profile.eval.prompts
        }
    return Validation(reader, tokens, text_bytes, tuple(ids), ChatPrompts(ids, template.stop_ids))


def answers_size(stream: TokenStream, marks: Marks, tokenizer: Tokenizer) -> tuple[int, int]:
    """Return the number of tokens that the assistant wrote, and of bytes that they spell.

    Of pairs of answers, the chosen ones count.
    """
    counts = np.zeros(marks.pieces, dtype=np.int64)
    for _, found in read_conversations(stream, marks):
        values = both_answers(found, marks)[0]
        spoken = marks.ids(values[marks.is_assistant(values)])
        counts += np.bincount(spoken, minlength=marks.pieces)
    used = np.flatnonzero(counts).tolist()
    text_bytes = sum(int(counts[token]) * len(tokenizer.spell(token)) for token in used)
    return int(counts.sum()), max(1, text_bytes)


def _questions(stream: TokenStream, marks: Marks, tokenizer: Tokenizer) -> dict[str, list[int]]:
    """Return the first held-back conversations up to their first answers, by their text."""
    found: dict[str, list[int]] = {}
    for _, values in read_conversations(stream, marks):
        first = int(marks.is_assistant(values).argmax())
        ids = marks.ids(values[:first]).tolist()
        if ids:
            found[tokenizer.decode(ids)] = ids
        if len(found) == _QUESTIONS:
            break
    return found
