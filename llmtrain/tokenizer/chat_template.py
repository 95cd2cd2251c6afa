"""Conversations as tokens, by the tokenizer's chat template or by ChatML.

    template = ChatTemplate.of(tokenizer)       # or ChatTemplate.load(directory)
    ids = template.encode(messages, add_generation_prompt=True)     # ask for an answer …
    answer = generate(ids, stop=template.stop_ids)                  # … which ends at one of these
    example = template.encode_example(messages)  # train: ids, and which of them are the assistant's

`messages` are JSON objects with a role and a content, as in {"role": "user", "content": "Hi"}.

Names of control tokens in a message are text and encode to ordinary tokens: only what the template
itself writes becomes a control token, so no message can end its turn or pretend to be another's.

Without a template of its own, a tokenizer that has <|im_start|> and <|im_end|> writes ChatML, and
one of llmtrain's writes it by three reserved pieces: the third, in place of ChatML's line end,
stands between the role and the content. Piece boundaries are then where an answer begins and
ends, so that a model is asked in the tokens that it was trained on.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtrain.errors import DataError
from llmtrain.tokenizer.chat_source import ChatSource
from llmtrain.tokenizer.of_model import tokenizer_of_model, with_reserved_pieces
from llmtrain.tokenizer.piece import reserved_names
from llmtrain.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llmtrain.tokenizer.chat_rendering import Message

CHAT_PIECES = 3  # reserved pieces that the default template needs
_CHATML_NAMES = ("<|im_start|>", "<|im_end|>")
_CHATML = (
    "{{{{ bos_token }}}}{{% for message in messages %}}"
    "{{{{ '{start}' + message['role'] + '{middle}' }}}}"
    "{{% if message['role'] == 'assistant' %}}"
    "{{% generation %}}{{{{ message['content'] + '{end}' }}}}{{% endgeneration %}}"
    "{{% else %}}{{{{ message['content'] + '{end}' }}}}{{% endif %}}"
    "{{{{ '{after}' }}}}{{% endfor %}}"
    "{{% if add_generation_prompt %}}{{{{ '{start}assistant{middle}' }}}}{{% endif %}}"
)


@dataclass(frozen=True, slots=True)
class ChatExample:
    """A conversation to train on."""

    ids: list[int]
    is_assistant: list[bool]  # for each id, whether it is of what the assistant wrote
    answer_ends: list[int]  # for each of the assistant's turns, the number of ids up to its end


class ChatTemplate:
    """A tokenizer's chat template: conversations to text, and to ids."""

    def __init__(self, tokenizer: Tokenizer, source: ChatSource) -> None:
        """Compile the template. Raises DataError."""
        self.tokenizer = tokenizer
        self.source = source
        self._controls = tokenizer.controls()
        from llmtrain.tokenizer.chat_rendering import Renderer  # a run on plain text needs none

        self._renderer = Renderer(source.template, dict(source.special_tokens))
        names = sorted(self._controls, key=len, reverse=True)
        self._names = re.compile("|".join(map(re.escape, names)))

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> ChatTemplate:
        """Return the tokenizer's own chat template, or ChatML. Raises DataError."""
        return cls(tokenizer, tokenizer.chat or default_source(tokenizer))

    @classmethod
    def load(cls, directory: Path) -> ChatTemplate:
        """Return the chat template of the tokenizer in `directory`. Raises DataError."""
        return cls.of(tokenizer_of_model(directory)[0])

    @property
    def marks_answers(self) -> bool:
        """True if `{% generation %}` in the template marks the assistant's tokens."""
        return self._renderer.has_generation

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """Return the text of a conversation, and with the prompt what begins an answer.

        Raises DataError if the template refuses the conversation.
        """
        return self._renderer.render(messages, "", add_generation_prompt=add_generation_prompt)

    def encode(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = False
    ) -> list[int]:
        """Return the ids of a conversation, and with the prompt of what begins an answer.

        Raises DataError if the template refuses the conversation.
        """
        marks, guarded = self._guarded(messages)
        text = self._renderer.render(guarded, marks, add_generation_prompt=add_generation_prompt)
        return self._tokens(text, marks).ids

    def encode_example(self, messages: Sequence[Message]) -> ChatExample:
        """Return the ids of a conversation, and which of them the assistant wrote.

        These are what the template's `{% generation %}` blocks have a part in, as
        `return_assistant_tokens_mask=True` of transformers has it. Where the template has none,
        they are what follows the prompt for each answer, up to the end of that turn. Raises
        DataError if the template refuses the conversation, or shows an answer in another form
        once others follow.
        """
        marks, guarded = self._guarded(messages)
        if self.marks_answers:
            text = self._renderer.render(guarded, marks, add_generation_prompt=False)
        else:
            text = self._with_marked_answers(guarded, marks)
        tokens = self._tokens(text, marks)
        is_assistant = [False] * len(tokens.ids)
        ends = []
        for start, end in tokens.spans:
            first, after = _covering(tokens.starts, start, end)
            is_assistant[first:after] = [True] * (after - first)
            ends.append(after)
        return ChatExample(tokens.ids, is_assistant, ends)

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Where texts end, and the control token that ends an answer if the template has one."""
        question = {"role": "user", "content": "a"}
        answer = {"role": "assistant", "content": "b"}
        example = self.encode_example([question, answer])
        controls = set(self._controls.values())
        spoken = [
            token
            for token, is_assistant in zip(example.ids, example.is_assistant, strict=True)
            if is_assistant and token in controls
        ]
        return self.tokenizer.stop_ids | frozenset(spoken[-1:])

    def _guarded(self, messages: Sequence[Message]) -> tuple[str, Sequence[Message]]:
        """Return marks, and the messages with the third one within each control token's name."""
        from llmtrain.tokenizer.chat_rendering import unused_marks

        marks = unused_marks((self.source.template, *_texts(messages)), 3)
        return marks, _replaced(messages, lambda name: name[0] + marks[2] + name[1:], self._names)

    def _with_marked_answers(self, messages: Sequence[Message], marks: str) -> str:
        """Return the text with marks around what follows the prompt for each answer."""
        whole = self._renderer.render(messages, marks, add_generation_prompt=False)
        parts, done = [], 0
        for index, message in enumerate(messages):
            if message.get("role") != "assistant":
                continue
            before = self._renderer.render(messages[:index], marks, add_generation_prompt=True)
            after = self._renderer.render(messages[: index + 1], marks, add_generation_prompt=False)
            if not (after.startswith(before) and whole.startswith(after) and len(before) >= done):
                raise DataError(
                    "the chat template has no {% generation %} marks, and changes message "
                    f"{index + 1} by what is around it",
                    hint="put {% generation %} and {% endgeneration %} around the assistant's "
                    "text in its chat_template.jinja",
                )
            end = self._end_of_turn(after, len(before))
            parts += [whole[done : len(before)], marks[0], whole[len(before) : end], marks[1]]
            done = end
        return "".join([*parts, whole[done:]])

    def _end_of_turn(self, text: str, start: int) -> int:
        """Return where a turn ends: at its last control token if only spaces follow it."""
        ends = [found.end() for found in self._names.finditer(text, start)]
        return ends[-1] if ends and not text[ends[-1] :].strip() else len(text)

    def _tokens(self, text: str, marks: str) -> _Tokens:
        """Return the ids of a marked text, where each begins, and the marked spans."""
        tokens = _Tokens([], [], [])
        at, opened = 0, 0
        plain: list[str] = []
        pattern = re.compile(f"([{marks[0]}{marks[1]}]|{self._names.pattern})")
        for part in pattern.split(text):
            if part == marks[0]:
                opened = at
            elif part == marks[1]:
                tokens.spans.append((opened, at))
            elif part in self._controls:
                self._append(tokens, "".join(plain), at)
                plain.clear()
                tokens.ids.append(self._controls[part])
                tokens.starts.append(at)
                at += len(part)
            else:
                plain.append(part.replace(marks[2], ""))
                at += len(plain[-1])
        self._append(tokens, "".join(plain), at)
        return tokens

    def _append(self, tokens: _Tokens, text: str, end: int) -> None:
        """Append the ids of `text`, which is between two control tokens and ends at `end`."""
        if text:
            ids, starts = self.tokenizer.encode_with_starts(text)
            tokens.ids.extend(ids)
            tokens.starts.extend(end - len(text) + start for start in starts)


@dataclass(frozen=True, slots=True)
class _Tokens:
    ids: list[int]
    starts: list[int]  # the first character of each, in the text without marks
    spans: list[tuple[int, int]]  # characters that the assistant wrote


def stop_ids_of(tokenizer: Tokenizer) -> frozenset[int]:
    """Return the ids at which a text ends, or an answer by the tokenizer's chat template."""
    if tokenizer.chat is None:
        return tokenizer.stop_ids
    try:
        return ChatTemplate.of(tokenizer).stop_ids
    except DataError:  # it takes other conversations than a question and its answer
        return tokenizer.stop_ids


def default_source(tokenizer: Tokenizer) -> ChatSource:
    """Return ChatML for a tokenizer without a template. Raises DataError without the pieces."""
    controls = tokenizer.controls()
    separator = tokenizer.piece(tokenizer.separator_id) if tokenizer.adds_bos else ""
    start, end, middle = reserved_names(CHAT_PIECES)
    after = ""
    if all(name in controls for name in _CHATML_NAMES):
        (start, end), middle, after = _CHATML_NAMES, "\\n", "\\n"
        separator = "" if separator == end else separator
    elif not all(name in controls for name in (start, end, middle)):
        raise DataError(
            f"the tokenizer has no chat template and no {CHAT_PIECES} reserved pieces for one",
            hint="llmtrain finetune adds them: use the model that it makes",
        )
    template = _CHATML.format(start=start, middle=middle, end=end, after=after)
    return ChatSource(template, (("bos_token", separator), ("eos_token", end)))


def with_chat_template(tokenizer: Tokenizer) -> Tokenizer:
    """Return the tokenizer with a chat template: its own, or ChatML with the pieces it needs.

    Pieces that it does not have come after its last; other ids are kept.
    """
    if tokenizer.chat is not None:
        return tokenizer
    controls = tokenizer.controls()
    if not all(name in controls for name in _CHATML_NAMES):
        missing = [name for name in reserved_names(CHAT_PIECES) if name not in controls]
        if missing:
            tokenizer = with_reserved_pieces(tokenizer, len(missing))
    return tokenizer.with_chat(default_source(tokenizer))


def _covering(starts: Sequence[int], start: int, end: int) -> tuple[int, int]:
    """Return the range of tokens that have a part in the characters from `start` to `end`."""
    if start == end or not starts:
        at = bisect_left(starts, start)
        return at, at
    containing = starts[max(bisect_right(starts, start) - 1, 0)]
    return bisect_left(starts, containing), bisect_left(starts, end)


def _texts(value: Any) -> Iterator[str]:
    """Yield every string in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield key
            yield from _texts(each)
    elif isinstance(value, Sequence):
        for each in value:
            yield from _texts(each)


def _replaced(value: Any, respell: Any, names: re.Pattern[str]) -> Any:
    """Return a JSON value with the names in its strings respelt."""
    if isinstance(value, str):
        return names.sub(lambda found: respell(found[0]), value)
    if isinstance(value, Mapping):
        return {key: _replaced(each, respell, names) for key, each in value.items()}
    if isinstance(value, Sequence):
        return [_replaced(each, respell, names) for each in value]
    return value
