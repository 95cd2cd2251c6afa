"""The server's routes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from llmtrain.errors import DataError, UsageError
from llmtrain.generate.generator import TextGenerator
from llmtrain.generate.text import TextRequest, TextStream, TokenText
from llmtrain.serve.access import read_body, require_host, require_key
from llmtrain.serve.answer import Answer
from llmtrain.serve.errors import (
    BadRequestError,
    NotFoundError,
    RequestError,
    UnavailableError,
    error_document,
)
from llmtrain.serve.event_stream import EventStream, unless_disconnected
from llmtrain.serve.json_text import encode_json
from llmtrain.serve.metrics import Metrics
from llmtrain.serve.openapi import openapi_document
from llmtrain.serve.page import PAGE_FILES, page_response
from llmtrain.serve.requests import ChatRequest, CompletionRequest, parse
from llmtrain.serve.responses import AnswerFormat, ChatFormat, CompletionFormat
from llmtrain.serve.scheduler import Scheduler
from llmtrain.tokenizer.chat_template import ChatTemplate

_DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's
_CLIENT_LEFT = 499  # as nginx counts it; nobody receives it
Handler = Callable[[Request], Coroutine[Any, Any, Response]]


@dataclass(frozen=True, slots=True)
class Service:
    """A model that is served."""

    name: str
    created_s: int
    generator: TextGenerator
    template: ChatTemplate | None  # None: the model was never taught to chat
    scheduler: Scheduler
    metrics: Metrics
    hosts: Collection[str] | None  # that clients may name this machine; None: any
    key: str | None

    async def models(self, request: Request) -> Response:
        """Answer which models there are: one."""
        return _json({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        """Answer what is known of one model."""
        self._require_model(request.path_params["name"])
        return _json(self._model())

    async def completions(self, request: Request) -> Response:
        """Continue prompts."""
        asked = parse(CompletionRequest, await read_body(request))
        self._require_model(asked.model)
        prompts = asked.prompts
        for prompt in prompts:
            self._require_possible(prompt)
        samplings = asked.samplings(len(prompts))
        requests = [
            TextRequest(
                prompts[number // asked.n],
                sampling,
                asked.max_tokens or _DEFAULT_COMPLETION_TOKENS,
                asked.stops,
                likeliest=asked.logprobs,
            )
            for number, sampling in enumerate(samplings)
        ]
        answers = CompletionFormat(self.name, self.generator.tokenizer, asked.logprobs, asked.n)
        return await self._answer(request, requests, answers, asked.stream, asked.includes_usage)

    async def chat(self, request: Request) -> Response:
        """Answer a conversation."""
        asked = parse(ChatRequest, await read_body(request))
        self._require_model(asked.model)
        if self.template is None:
            raise BadRequestError(
                f"{self.name} was never taught to chat; /v1/completions continues texts",
                code="not_a_chat_model",
            )
        prompt = await run_in_threadpool(self._conversation, asked, self.template)
        likeliest = (asked.top_logprobs or 0) if asked.logprobs else None
        most = asked.max_completion_tokens or asked.max_tokens or self.generator.context
        requests = [
            TextRequest(
                prompt, sampling, most, asked.stops, self.template.stop_ids, likeliest=likeliest
            )
            for sampling in asked.samplings()
        ]
        answers = ChatFormat(self.name, self.generator.tokenizer, likeliest, asked.n)
        return await self._answer(request, requests, answers, asked.stream, asked.includes_usage)

    async def health(self, request: Request) -> Response:
        """Answer whether requests are taken."""
        if (reason := self.scheduler.why_closed) is not None:
            raise UnavailableError(reason)
        return _json({"status": "ok"})

    async def openapi(self, request: Request) -> Response:
        """Answer what the interface is."""
        return _json(openapi_document(needs_key=self.key is not None))

    async def prometheus(self, request: Request) -> Response:
        """Answer what was counted."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    def _model(self) -> dict[str, Any]:
        return {
            "id": self.name,
            "object": "model",
            "created": self.created_s,
            "owned_by": "llmtrain",
            "context_length": self.generator.context,
            "can_chat": self.template is not None,
        }

    def _require_model(self, name: str | None) -> None:
        if name is not None and name != self.name:
            raise NotFoundError(
                f"there is no model {name[:100]!r}; this server has {self.name!r}",
                param="model",
                code="model_not_found",
            )

    def _require_possible(self, prompt: str | tuple[int, ...]) -> None:
        """Raise BadRequestError for ids that do not exist, and texts that cannot be read."""
        if isinstance(prompt, str):
            if len(prompt) > self.generator.longest_prompt_characters:
                raise self._too_long(f"{len(prompt)} characters")
        elif max(prompt) >= self.generator.tokenizer.vocab_size:
            raise BadRequestError(
                f"token ids go from 0 to {self.generator.tokenizer.vocab_size - 1}", param="prompt"
            )

    def _conversation(self, asked: ChatRequest, template: ChatTemplate) -> tuple[int, ...]:
        messages = [message.plain() for message in asked.messages]
        characters = sum(len(message["content"]) for message in messages)
        if characters > self.generator.longest_prompt_characters:
            raise self._too_long(f"{characters} characters")
        try:
            return tuple(template.encode(messages, add_generation_prompt=True))
        except DataError as error:
            raise BadRequestError(error.message, param="messages") from None

    def _too_long(self, found: str) -> BadRequestError:
        return BadRequestError(
            f"the prompt has {found}; the model's context is {self.generator.context} tokens",
            code="context_length_exceeded",
        )

    def _prepare(self, requests: Sequence[TextRequest]) -> list[TextStream]:
        """Return the streams of requests, none of which goes beyond the context."""
        streams = []
        for each in requests:
            try:
                stream = self.generator.prepare(each)
            except DataError as error:
                raise BadRequestError(error.message, param="prompt") from None
            room = self.generator.context - stream.prompt_tokens
            if room < 1:
                raise self._too_long(f"{stream.prompt_tokens} tokens")
            stream.limit_tokens(room)
            streams.append(stream)
        return streams

    async def _answer(
        self,
        request: Request,
        requests: Sequence[TextRequest],
        answers: AnswerFormat,
        streams_it: bool,
        includes_usage: bool,
    ) -> Response:
        streams = await run_in_threadpool(self._prepare, requests)
        answer = Answer(self.scheduler, streams)
        self.metrics.prompt_tokens.add(sum(stream.prompt_tokens for stream in streams))
        if streams_it:
            return EventStream(_parts(answer, answers, includes_usage), answer.cancel)
        try:
            found = await unless_disconnected(_whole(answer, answers), request.receive)
        finally:
            answer.cancel()
        return Response(status_code=_CLIENT_LEFT) if found is None else _json(found)


async def _whole(answer: Answer, answers: AnswerFormat) -> dict[str, Any]:
    texts = [""] * len(answer.streams)
    tokens: list[list[TokenText]] = [[] for _ in answer.streams]
    async for index, update in answer.updates():
        texts[index] += update.piece.text
        tokens[index] += update.piece.tokens
    return answers.whole(answer.streams, texts, tokens)


async def _parts(
    answer: Answer, answers: AnswerFormat, includes_usage: bool
) -> AsyncIterator[dict[str, Any]]:
    offsets = [0] * len(answer.streams)
    for first in answers.first_parts(len(answer.streams)):
        yield first
    try:
        async for index, update in answer.updates():
            piece = update.piece
            if piece.text or piece.tokens or update.finish:
                yield answers.part(index, piece.text, piece.tokens, update.finish, offsets[index])
            offsets[index] += len(piece.text)
    except RequestError as error:  # the status is sent already
        yield error.document()
        return
    if includes_usage:
        yield answers.usage(answer.streams)


def make_app(service: Service) -> Starlette:
    """Return the ASGI application."""
    v1: list[tuple[str, Handler, str]] = [
        ("/v1/models", service.models, "GET"),
        ("/v1/models/{name:path}", service.model, "GET"),
        ("/v1/completions", service.completions, "POST"),
        ("/v1/chat/completions", service.chat, "POST"),
        ("/metrics", service.prometheus, "GET"),
    ]
    open_to_all: list[tuple[str, Handler, str]] = [
        ("/health", service.health, "GET"),
        ("/openapi.json", service.openapi, "GET"),
    ]
    open_to_all += [(path, page_response, "GET") for path in PAGE_FILES]
    routes = [
        Route(path, partial(_guarded, service, handler, service.key), methods=[method])
        for path, handler, method in v1
    ]
    routes += [
        Route(path, partial(_guarded, service, handler, None), methods=[method])
        for path, handler, method in open_to_all
    ]
    handlers: dict[Any, Any] = {HTTPException: partial(_unrouted, service)}
    return Starlette(routes=routes, exception_handlers=handlers)


async def _guarded(
    service: Service, handler: Handler, key: str | None, request: Request
) -> Response:
    """Answer a request if it may be asked, and count it."""
    try:
        require_host(request, service.hosts)
        require_key(request, key)
        response = await handler(request)
    except RequestError as error:
        response = _json(error.document(), error.status, dict(error.headers))
    except UsageError as error:  # of values that only the engine knows to be impossible
        response = _json(BadRequestError(error.message).document(), 400)
    except ClientDisconnect:
        response = Response(status_code=_CLIENT_LEFT)
    service.metrics.count_request(response.status_code)
    return response


async def _unrouted(service: Service, request: Request, error: HTTPException) -> Response:
    """Answer a request for what is not there, or by another method."""
    service.metrics.count_request(error.status_code)
    known = "GET /v1/models, POST /v1/completions and POST /v1/chat/completions"
    message = f"{error.detail}; there are {known}"
    document = error_document(message, "invalid_request_error")
    return _json(document, error.status_code, dict(error.headers or {}))


def _json(
    value: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    return Response(encode_json(value), status, headers, media_type="application/json")
