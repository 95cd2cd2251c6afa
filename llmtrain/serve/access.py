"""Access to the server: key, host and size, checked before anything else of a request is read."""

from __future__ import annotations

import asyncio
import hmac
import re
from collections.abc import Collection

from starlette.requests import Request

from llmtrain.serve.errors import (
    BadRequestError,
    ForbiddenError,
    MediaTypeError,
    TooLargeError,
    TooSlowError,
    UnauthorizedError,
)
from llmtrain.units import format_bytes

BODY_BYTES = 1 << 20
_BODY_TIMEOUT_S = 30.0
LOOPBACK = ("127.0.0.1", "::1", "localhost")
_PORT = re.compile(r":\d{1,5}\Z")


def require_host(request: Request, names: Collection[str] | None) -> None:
    """Raise ForbiddenError if the request names another host than `names`; None: any.

    A page elsewhere can have its own name resolve to this machine (DNS rebinding), and then read
    what a server on loopback answers; but the browser sends that name.
    """
    named = request.headers.getlist("host")
    if len(named) != 1:
        raise BadRequestError("there has to be one Host header")
    host = _PORT.sub("", named[0]).strip("[]").lower()
    if names is not None and host not in names:
        raise ForbiddenError(f"this server answers for {', '.join(names)} only")


def require_key(request: Request, key: str | None) -> None:
    """Raise UnauthorizedError if the request does not have the key; compares in constant time."""
    if key is None:
        return
    given = request.headers.get("authorization", "")
    expected = f"Bearer {key}"
    if not hmac.compare_digest(given.encode(errors="replace"), expected.encode()):
        raise UnauthorizedError("the API key is missing or wrong", code="invalid_api_key")


async def read_body(request: Request) -> bytes:
    """Return the JSON body. Raises RequestError for other types, too many bytes, and slow ones.

    A browser sends a form of any page elsewhere without asking, but no JSON.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise MediaTypeError("Content-Type has to be application/json")
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or int(declared[:20]) > BODY_BYTES:
        raise TooLargeError(f"the body may have {format_bytes(BODY_BYTES)}")
    try:
        return await asyncio.wait_for(_read(request), _BODY_TIMEOUT_S)
    except asyncio.TimeoutError:
        raise TooSlowError(f"the body took more than {_BODY_TIMEOUT_S:.0f} s") from None


async def _read(request: Request) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > BODY_BYTES:
            raise TooLargeError(f"the body may have {format_bytes(BODY_BYTES)}")
    return bytes(body)
