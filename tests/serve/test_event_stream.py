from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from llmtrain.serve.event_stream import EventStream


def test_text_that_utf_8_lacks_does_not_end_a_stream() -> None:
    sent: list[bytes] = []

    async def values() -> AsyncIterator[dict[str, Any]]:
        yield {"text": "\ud800"}

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))

    stream = EventStream(values(), lambda: None)
    asyncio.run(stream({"type": "http"}, receive, send))
    assert b"".join(sent) == b'data: {"text":"?"}\n\ndata: [DONE]\n\n'
