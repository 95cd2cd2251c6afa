"""Encode conversations for shards, by the chat template of the tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from llmtrain.data.chat.marks import Marks
from llmtrain.data.chat.preferences import read_preference
from llmtrain.data.chat.rows import read_conversation
from llmtrain.data.shards.encode import Encoded, RefusedTextError, TextEncoder
from llmtrain.errors import DataError
from llmtrain.files import json_key
from llmtrain.profile.schema import DataSection
from llmtrain.tokenizer import Tokenizer
from llmtrain.tokenizer.chat_template import ChatTemplate

_RECIPE = 1  # raised when the same conversation gets other tokens or marks


class ChatEncoder(TextEncoder):
    """A tokenizer and its chat template: the text of a conversation to marked tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Compile the template. Raises DataError."""
        self.template = ChatTemplate.of(tokenizer)
        self.marks = Marks(tokenizer.vocab_size)
        source = asdict(self.template.source)
        key = json_key([_RECIPE, tokenizer.fingerprint, source])
        self._fingerprint = key

    @property
    def vocab_size(self) -> int:
        """The number of different values in shards."""
        return self.marks.values

    @property
    def separator_id(self) -> int:
        """The value that begins each conversation."""
        return self.marks.separator

    @property
    def end_id(self) -> None:
        """None: no id is put after a conversation, which its template has ended."""

    @property
    def fingerprint(self) -> str:
        """A key of the tokenizer and the template."""
        return self._fingerprint

    def encode_text(self, text: str) -> list[int]:
        """Return the values of a conversation. Raises DataError if nothing in it carries loss."""
        example = self.template.encode_example(read_conversation(text))
        if not any(example.is_assistant[1:]):
            raise DataError("the chat template shows nothing that the assistant wrote")
        return self.marks.mark(example.ids, example.is_assistant)

    def encode_document(self, text: str, origin: str) -> list[int]:
        """Return the values of a conversation. Raises DataError as `encode_text`, naming origin."""
        try:
            return self.encode_text(text)
        except DataError as error:
            raise DataError(f"{origin}: {error.message}", hint=error.hint) from None

    def encode_batch(self, texts: Sequence[str], threads: int) -> list[list[int]]:
        """Return the values of each conversation. Raises DataError as `encode_text`."""
        return [self.encode_text(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of values, separators without any."""
        values = np.array([each for each in ids if each < self.separator_id], dtype=np.int64)
        return self.template.tokenizer.decode(self.marks.ids(values).tolist())


class PreferenceEncoder(ChatEncoder):
    """A tokenizer and its chat template: a preference to the marked tokens of both answers.

    They are two conversations with a divider between them. The prompt carries no loss, nor do
    earlier answers in it.
    """

    @property
    def vocab_size(self) -> int:
        """The number of different values in shards: one more, the divider."""
        return self.marks.values + 1

    @property
    def fingerprint(self) -> str:
        """A key of the tokenizer and the template, and of pairs."""
        return json_key(["preferences", self._fingerprint])

    def encode_text(self, text: str) -> list[int]:
        """Return the values of a preference. Raises DataError if an answer carries no loss."""
        pair = read_preference(text)
        chosen, rejected = (
            self._answer(pair.prompt, answer) for answer in (pair.chosen, pair.rejected)
        )
        if chosen == rejected:
            raise DataError("the chat template shows both answers alike, so neither is preferred")
        return [*chosen, self.marks.divider, *rejected]

    def _answer(self, prompt: list[dict[str, Any]], answer: list[dict[str, Any]]) -> list[int]:
        example = self.template.encode_example([*prompt, *answer])
        earlier = sum(message["role"] == "assistant" for message in prompt)
        start = example.answer_ends[earlier - 1] if earlier else 1  # nothing precedes the first
        is_answer = [False] * start + example.is_assistant[start:]
        if not any(is_answer):
            raise DataError("the chat template shows nothing that the assistant wrote")
        return self.marks.mark(example.ids, is_answer)


def encode_conversations(
    encoder: ChatEncoder,
    check_stop: Callable[[], None],
    batches: Iterable[Sequence[bytes]],
) -> Generator[Encoded, None, None]:
    """Yield the values of each batch of conversations, in order.

    Raises RefusedTextError for one that the template refuses.
    """
    for batch in batches:
        encoded = []
        for index, data in enumerate(batch):
            check_stop()
            try:
                encoded.append(np.array(encoder.encode_text(data.decode()), dtype=np.int64))
            except DataError as error:
                raise RefusedTextError(error.message, index, hint=error.hint) from None
        counts = np.array([len(ids) for ids in encoded], dtype=np.int64)
        yield np.concatenate(encoded), counts


def encoder_of(section: DataSection, tokenizer: Tokenizer) -> TextEncoder:
    """Return what the shards of the section's data are encoded with. Raises DataError."""
    if section.rows == "preferences":
        return PreferenceEncoder(tokenizer)
    return ChatEncoder(tokenizer) if section.rows == "chat" else tokenizer
