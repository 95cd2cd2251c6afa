"""A streamed response that ends as soon as its client disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from llmtrain.serve.json_text import encode_json

_SEND_TIMEOUT_S = 60.0  # how long a client may read nothing
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class EventStream(Response):
    """Server-sent events, one for each value of an iterator; `close` is called in every case.

    https://html.spec.whatwg.org/multipage/server-sent-events.html
    """

    media_type = "text/event-stream"

    def __init__(self, values: AsyncIterator[dict[str, Any]], close: Callable[[], None]) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]  # it is not known
        self._values = values
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until the last, or until the client leaves or reads no more."""
        try:
            # An OSError is a client that left, a time-out one that reads no more.
            with suppress(asyncio.TimeoutError, OSError):
                await unless_disconnected(self._send_all(send), receive)
        finally:
            self._close()

    async def _send_all(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        async for value in self._values:
            await _send_body(send, event_of(encode_json(value)), more=True)
        await _send_body(send, event_of(b"[DONE]"), more=False)


def event_of(data: bytes) -> bytes:
    """Return a line of data as an event."""
    return b"data: " + data + b"\n\n"


async def unless_disconnected(work: Awaitable[Any], receive: Receive) -> Any:
    """Return what `work` does, or None if the client leaves before; then the work is cancelled."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_body(send: Send, body: bytes, *, more: bool) -> None:
    message = {"type": "http.response.body", "body": body, "more_body": more}
    await asyncio.wait_for(send(message), _SEND_TIMEOUT_S)
