"""What clients send, as OpenAI's interface has it, with bounds.

https://platform.openai.com/docs/api-reference
"""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from llmtrain.generate.sampling import Sampling
from llmtrain.serve.errors import BadRequestError

_MOST_CHOICES = 16
_MOST_STOPS = 16
_LONGEST_STOP = 256
_MOST_MESSAGES = 1024
_MOST_LIKELIEST = 20
_MOST_TOKENS = 1 << 20

Stop = Annotated[str, Field(min_length=1, max_length=_LONGEST_STOP)]
Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class _Received(BaseModel):
    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True
    )


class StreamOptions(_Received):
    """Options of a streamed answer."""

    include_usage: bool = False


class _Request(_Received):
    """The fields that both kinds of request have."""

    model: str | None = None
    n: int = Field(default=1, ge=1, le=_MOST_CHOICES)
    stream: bool = False
    stream_options: StreamOptions | None = None
    stop: str | Annotated[list[Stop], Field(max_length=_MOST_STOPS)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    # not OpenAI's, but of vLLM and llama.cpp
    top_k: Annotated[int, Field(ge=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=1, le=100)] | None = None
    # taken and without effect here
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    # refused unless they change nothing
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None

    @model_validator(mode="after")
    def _require_stop(self) -> _Request:
        if isinstance(self.stop, str) and not 0 < len(self.stop) <= _LONGEST_STOP:
            raise ValueError(f"stop has to have 1 to {_LONGEST_STOP} characters")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is for streamed answers: set stream")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """The strings that end a text."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def includes_usage(self) -> bool:
        """True if a streamed answer ends with its numbers of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    def samplings(self, prompts: int = 1) -> list[Sampling]:
        """Return how each text is sampled: `n` of each prompt, the seed counting up."""
        seed = self.seed if self.seed is not None else secrets.randbits(48)
        return [
            Sampling(
                temperature=1.0 if self.temperature is None else self.temperature,
                top_k=self.top_k,
                top_p=self.top_p,
                repetition_penalty=self.repetition_penalty or 1.0,
                seed=seed + number,
                presence_penalty=self.presence_penalty or 0.0,
                frequency_penalty=self.frequency_penalty or 0.0,
            )
            for number in range(prompts * self.n)
        ]


class CompletionRequest(_Request):
    """The body of `/v1/completions`."""

    prompt: (
        str
        | Ids
        | Annotated[list[str], Field(min_length=1, max_length=_MOST_CHOICES)]
        | Annotated[list[Ids], Field(min_length=1, max_length=_MOST_CHOICES)]
    ) = ""
    max_tokens: Annotated[int, Field(ge=1, le=_MOST_TOKENS)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=_MOST_LIKELIEST)] | None = None
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
    suffix: Literal[""] | None = None

    @property
    def prompts(self) -> list[str | tuple[int, ...]]:
        """The prompts, each a text or ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        found: list[str | tuple[int, ...]] = []
        ids: list[int] = []
        for each in self.prompt:
            if isinstance(each, int):
                ids.append(each)
            else:
                found.append(each if isinstance(each, str) else tuple(each))
        return [tuple(ids)] if ids else found

    @model_validator(mode="after")
    def _require_few_texts(self) -> CompletionRequest:
        if len(self.prompts) * self.n > _MOST_CHOICES:
            raise ValueError(f"prompts × n are more than {_MOST_CHOICES} texts")
        return self


class TextPart(_Received):
    """A part of a message."""

    type: Literal["text"]
    text: str


class ChatMessage(_Received):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]
    name: str | None = None
    refusal: None = None  # clients send answers back as they were
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None

    def plain(self) -> dict[str, str]:
        """Return the message as a chat template takes it."""
        content = self.content
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ResponseFormat(_Received):
    """The form of an answer: text, and no other."""

    type: Literal["text"]


class ChatRequest(_Request):
    """The body of `/v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=_MOST_MESSAGES)]
    max_tokens: Annotated[int, Field(ge=1, le=_MOST_TOKENS)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=_MOST_TOKENS)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=_MOST_LIKELIEST)] | None = None
    response_format: ResponseFormat | None = None

    @model_validator(mode="after")
    def _require_logprobs(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        return self


R = TypeVar("R", bound=BaseModel)


def parse(kind: type[R], body: bytes) -> R:
    """Return the request that a body is. Raises BadRequestError, naming the first wrong key."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        path = ".".join(str(part) for part in first["loc"] if not str(part).startswith("list["))
        where = f"{path}: " if path else ""
        message = first["msg"].removeprefix("Value error, ")
        raise BadRequestError(f"{where}{message}", param=path or None) from None
