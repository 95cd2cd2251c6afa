"""A text that grows by sampled tokens: whole characters, the end of the prompt, stop strings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from llmtrain.generate.batch import Continuation
from llmtrain.generate.sampling import Sampling, Token
from llmtrain.tokenizer import Tokenizer
from llmtrain.tokenizer.escape import unescape
from llmtrain.tokenizer.healing import HealedPrompt, Spellings, heal_prompt
from llmtrain.tokenizer.streams import IncrementalDecoder, whole_characters

# stop: the model ended the text, or a stop string did; length: `max_tokens` were sampled.
Finish = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class TextRequest:
    """A text to continue, and until when.

    A prompt of ids is continued as it is. The last tokens of one of text may be sampled again
    (`tokenizer.healing`); they do not count in `max_tokens`. The text ends where texts of the
    tokenizer do, at an id of `ends`, or before any string of `stop`. `likeliest`: see
    `Continuation`.
    """

    prompt: str | tuple[int, ...]
    sampling: Sampling
    max_tokens: int
    stop: tuple[str, ...] = ()
    ends: frozenset[int] = frozenset()
    likeliest: int | None = None


@dataclass(frozen=True, slots=True)
class TokenText:
    """A sampled token and what it spells alone, U+FFFD for a part of a character."""

    token: Token
    text: str
    spelled: bytes


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that can be shown now, and the tokens that begin in it."""

    text: str
    tokens: tuple[TokenText, ...]


class TextStream:
    """The text of one request; `continuation` is what a `Batch` continues."""

    def __init__(self, request: TextRequest, tokenizer: Tokenizer, spellings: Spellings) -> None:
        """Raise DataError for a prompt with a lone surrogate."""
        self.request = request
        self._max_tokens = request.max_tokens
        self.finish: Finish | None = None
        self.sampled_tokens = 0  # beyond the prompt
        self._tokenizer = tokenizer
        self._spellings = spellings
        self._ends = request.ends | tokenizer.stop_ids | {tokenizer.separator_id}
        self._healed = _healed(request.prompt, tokenizer, spellings)
        self.continuation = Continuation(
            self._healed.kept, request.sampling, self._healed.allowed, request.likeliest
        )
        ids = [*self._healed.kept, *self._healed.dropped]
        # As long as the prompt's last tokens are sampled again, only their text is new.
        self._decoder = IncrementalDecoder(tokenizer, self._healed.kept)
        shown = whole_characters(tokenizer.decode(self._healed.kept))
        self._repeated = self._healed.text[len(shown) :]
        self.prompt_tokens = len(ids)
        self._held = ""  # it may be the beginning of a stop string
        self._shown_length = 0
        self._tokens: list[tuple[int, TokenText]] = []  # not shown, each with where it begins

    def limit_tokens(self, most: int) -> None:
        """End the text after at most so many tokens."""
        self._max_tokens = min(self._max_tokens, most)

    def push(self, token: Token) -> Piece:
        """Add the next sampled token; return what can be shown."""
        assert self.finish is None
        if token.id in self._ends:
            return self._finish("stop")
        sampled, dropped = self.continuation.sampled, self._healed.dropped
        is_beyond = tuple(sampled) != dropped[: len(sampled)]
        if is_beyond:
            self.sampled_tokens += 1
            begins = self._shown_length + len(self._held)
            self._tokens.append((begins, self._token_text(token)))
        piece = self._add_text(self._decoder.add(token.id))
        if self.finish is None and self.sampled_tokens >= self._max_tokens:
            last = self._finish("length")
            return Piece(piece.text + last.text, piece.tokens + last.tokens)
        return piece

    def _token_text(self, token: Token) -> TokenText:
        spelled = self._spellings.of[token.id]
        return TokenText(token, spelled_text(self._tokenizer, token.id), spelled)

    def _add_text(self, text: str) -> Piece:
        if self._repeated and text:
            repeated = self._repeated
            text, self._repeated = text[len(repeated) :], repeated[len(text) :]
        text = self._held + text
        end = _first_stop(text, self.request.stop)
        if end is not None:
            self.finish, self._held = "stop", ""
            return self._show(text[:end])
        kept = _stop_prefix(text, self.request.stop)
        self._held = text[len(text) - kept :]
        return self._show(text[: len(text) - kept])

    def _finish(self, why: Finish) -> Piece:
        piece = self._add_text(self._decoder.finish())
        if self.finish is not None:  # what completed the last character was a stop string
            return piece
        self.finish, held, self._held = why, self._held, ""
        last = self._show(held)
        rest = tuple(token for _, token in self._tokens)
        self._tokens = []
        return Piece(piece.text + last.text, piece.tokens + last.tokens + rest)

    def _show(self, text: str) -> Piece:
        self._shown_length += len(text)
        shown = [token for begins, token in self._tokens if begins < self._shown_length]
        self._tokens = self._tokens[len(shown) :]
        return Piece(text, tuple(shown))


def spelled_text(tokenizer: Tokenizer, token: int) -> str:
    """Return what an id spells alone: U+FFFD for a part of a character, a control token's name."""
    spelled = tokenizer.spell(token).decode(errors="replace")
    return unescape(spelled) if spelled else tokenizer.piece(token)


def _healed(
    prompt: str | tuple[int, ...], tokenizer: Tokenizer, spellings: Spellings
) -> HealedPrompt:
    if isinstance(prompt, str):
        return heal_prompt(tokenizer, prompt, spellings)
    return HealedPrompt(prompt, (), tokenizer.decode(prompt), spellings)


def _first_stop(text: str, stop: Sequence[str]) -> int | None:
    """Return where the first stop string in `text` begins; None if it has none."""
    return min((at for each in stop if (at := text.find(each)) >= 0), default=None)


def _stop_prefix(text: str, stop: Sequence[str]) -> int:
    """Return the length of the longest end of `text` that a stop string begins with."""
    longest = 0
    for each in stop:
        for length in range(min(len(each) - 1, len(text)), longest, -1):
            if text.endswith(each[:length]):
                longest = length
                break
    return longest
