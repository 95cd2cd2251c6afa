"""The JSON of answers, as OpenAI's interface has it, whole or in parts."""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from llmtrain.generate.text import Finish, TextStream, TokenText, spelled_text
from llmtrain.tokenizer import Tokenizer


class AnswerFormat(ABC):
    """The JSON of the answer to one request."""

    prefix: ClassVar[str]
    whole_object: ClassVar[str]
    part_object: ClassVar[str]

    def __init__(self, model: str, tokenizer: Tokenizer, likeliest: int | None, n: int) -> None:
        """`likeliest`: alternatives shown with each token; None: no log-probabilities.

        `n`: texts of each prompt.
        """
        self._n = n
        self._tokenizer = tokenizer
        self._likeliest = likeliest
        self._head = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(
        self, streams: Sequence[TextStream], texts: Sequence[str], tokens: Sequence[list[TokenText]]
    ) -> dict[str, Any]:
        """Return the answer of finished texts."""
        choices = [
            {
                "index": index,
                **self._content(texts[index]),
                "logprobs": self._logprobs(tokens[index], 0),
                "finish_reason": stream.finish,
            }
            for index, stream in enumerate(streams)
        ]
        return {
            **self._head,
            "object": self.whole_object,
            "choices": choices,
            "usage": self._usage(streams),
        }

    def part(
        self,
        index: int,
        text: str,
        tokens: Sequence[TokenText],
        finish: Finish | None,
        offset: int,
    ) -> dict[str, Any]:
        """Return a part of a streamed answer; `offset` characters of its text were sent before."""
        choice = {
            "index": index,
            **self._added(text),
            "logprobs": self._logprobs(tokens, offset),
            "finish_reason": finish,
        }
        return {**self._head, "object": self.part_object, "choices": [choice]}

    def usage(self, streams: Sequence[TextStream]) -> dict[str, Any]:
        """Return the last part of a streamed answer that says its numbers of tokens."""
        return {
            **self._head,
            "object": self.part_object,
            "choices": [],
            "usage": self._usage(streams),
        }

    def _usage(self, streams: Sequence[TextStream]) -> dict[str, int]:
        prompt = sum(stream.prompt_tokens for stream in streams[:: self._n])
        sampled = sum(stream.sampled_tokens for stream in streams)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": sampled,
            "total_tokens": prompt + sampled,
        }

    def first_parts(self, texts: int) -> list[dict[str, Any]]:
        """Return what a streamed answer begins with."""
        return []

    @abstractmethod
    def _content(self, text: str) -> dict[str, Any]:
        """Return the keys of a whole text."""

    @abstractmethod
    def _added(self, text: str) -> dict[str, Any]:
        """Return the keys of a part of a text."""

    @abstractmethod
    def _logprobs(self, tokens: Sequence[TokenText], offset: int) -> dict[str, Any] | None:
        """Return the log-probabilities of tokens; None where they were not asked for."""


class CompletionFormat(AnswerFormat):
    """The answers of `/v1/completions`."""

    prefix = "cmpl"
    whole_object = part_object = "text_completion"

    def _content(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def _added(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def _logprobs(self, tokens: Sequence[TokenText], offset: int) -> dict[str, Any] | None:
        if self._likeliest is None:
            return None
        offsets = []
        for each in tokens:
            offsets.append(offset)
            offset += len(each.text)
        return {
            "tokens": [each.text for each in tokens],
            "token_logprobs": [each.token.logprob for each in tokens],
            "top_logprobs": [
                {spelled_text(self._tokenizer, i): logprob for i, logprob in each.token.likeliest}
                for each in tokens
            ],
            "text_offset": offsets,
        }


class ChatFormat(AnswerFormat):
    """The answers of `/v1/chat/completions`."""

    prefix = "chatcmpl"
    whole_object = "chat.completion"
    part_object = "chat.completion.chunk"

    def first_parts(self, texts: int) -> list[dict[str, Any]]:
        """Return a part that says who speaks, for each text."""
        delta = {"role": "assistant", "content": ""}
        rest = {"delta": delta, "logprobs": None, "finish_reason": None}
        return [
            {**self._head, "object": self.part_object, "choices": [{"index": index, **rest}]}
            for index in range(texts)
        ]

    def _content(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def _added(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text} if text else {}}

    def _logprobs(self, tokens: Sequence[TokenText], offset: int) -> dict[str, Any] | None:
        if self._likeliest is None:
            return None
        return {"content": [self._token(each) for each in tokens], "refusal": None}

    def _token(self, sampled: TokenText) -> dict[str, Any]:
        token = sampled.token
        return {
            "token": sampled.text,
            "logprob": token.logprob,
            "bytes": list(sampled.spelled),
            "top_logprobs": [
                {
                    "token": spelled_text(self._tokenizer, other),
                    "logprob": logprob,
                    "bytes": list(self._tokenizer.spell(other)),
                }
                for other, logprob in token.likeliest
            ],
        }
