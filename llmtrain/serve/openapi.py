"""The interface as an OpenAPI document, from the models by which requests are parsed."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

import llmtrain
from llmtrain.serve.requests import ChatRequest, CompletionRequest

_SCHEMAS = "#/components/schemas/"
_ERRORS = {
    400: "the request is wrong; `param` names the key",
    401: "the key is missing or wrong",
    403: "the request is for another host's name",
    404: "there is no such model or path",
    408: "the body did not arrive in time",
    413: "the body is too large",
    415: "the body is not said to be JSON",
    429: "as many requests wait as may",
    500: "the model failed",
    503: "the server is shutting down, its model failed, or it has as many connections as it takes",
}
_TEXT: dict[str, Any] = {"type": "string"}
_COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}


def openapi_document(*, needs_key: bool) -> dict[str, Any]:
    """Return the document; `needs_key`: requests below /v1 and of metrics carry the server's."""
    kinds = [(CompletionRequest, "validation"), (ChatRequest, "validation")]
    _, requests = models_json_schema(kinds, ref_template=_SCHEMAS + "{model}")  # type: ignore[arg-type]
    completion, chat = ("CompletionRequest", "Completion"), ("ChatRequest", "ChatCompletion")
    paths = {
        "/v1/models": {"get": _get("listModels", "ModelList")},
        "/v1/models/{name}": {"get": {**_get("getModel", "Model"), "parameters": [_NAME]}},
        "/v1/completions": {"post": _post("createCompletion", *completion)},
        "/v1/chat/completions": {"post": _post("createChatCompletion", *chat)},
        "/metrics": {"get": _get("metrics", None)},
        "/health": {"get": {**_get("health", "Health"), "security": []}},
    }
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "llmtrain serve", "version": llmtrain.__version__},
        "paths": paths,
        "components": {"schemas": {**requests["$defs"], **_answers()}},
    }
    if needs_key:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


_NAME = {"name": "name", "in": "path", "required": True, "schema": _TEXT}


def _get(operation: str, schema: str | None) -> dict[str, Any]:
    content = {"text/plain": {"schema": _TEXT}} if schema is None else _json_of(schema)
    answers = {"200": {"description": "the answer", "content": content}}
    return {"operationId": operation, "responses": answers | _refusals(401, 403, 404, 503)}


def _post(operation: str, request: str, answer: str) -> dict[str, Any]:
    content = {**_json_of(answer), "text/event-stream": {"schema": {}}}
    answers = {"200": {"description": "whole, or with `stream` in parts", "content": content}}
    return {
        "operationId": operation,
        "requestBody": {"required": True, "content": _json_of(request)},
        "responses": answers | _refusals(*_ERRORS),
    }


def _json_of(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _SCHEMAS + schema}}}


def _refusals(*codes: int) -> dict[str, Any]:
    return {
        str(code): {"description": _ERRORS[code], "content": _json_of("Error")} for code in codes
    }


def _answers() -> dict[str, Any]:
    """Return the schemas of what is answered."""
    usage = _object(prompt_tokens=_COUNT, completion_tokens=_COUNT, total_tokens=_COUNT)
    finish = {"enum": ["stop", "length"]}
    message = _object(role={"const": "assistant"}, content=_TEXT)
    error = _object("message", "type", message=_TEXT, type=_TEXT, param={}, code={})
    model = _object(id=_TEXT, object={"const": "model"}, created=_COUNT, owned_by=_TEXT)
    model["properties"] |= {"context_length": _COUNT, "can_chat": {"type": "boolean"}}
    return {
        "Error": _object(error=error),
        "Model": model,
        "ModelList": _object(object={"const": "list"}, data=_list({"$ref": _SCHEMAS + "Model"})),
        "Health": _object(status={"const": "ok"}),
        "Completion": _answer(
            "text_completion", usage, _object(text=_TEXT, index=_COUNT, finish_reason=finish)
        ),
        "ChatCompletion": _answer(
            "chat.completion", usage, _object(message=message, index=_COUNT, finish_reason=finish)
        ),
    }


def _answer(kind: str, usage: dict[str, Any], choice: dict[str, Any]) -> dict[str, Any]:
    head = {"id": _TEXT, "object": {"const": kind}, "created": _COUNT, "model": _TEXT}
    return _object(**head, choices=_list(choice), usage=usage)


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _object(*required: str, **properties: Any) -> dict[str, Any]:
    """Return the schema of an object; without `required` every property is."""
    needed = list(required or properties)
    return {"type": "object", "properties": properties, "required": needed}
