"""The texts of one request, as they arrive from the scheduler's thread."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from functools import partial

from llmtrain.generate.text import TextStream
from llmtrain.serve.errors import BusyError, FailedError, UnavailableError
from llmtrain.serve.scheduler import (
    ClosedError,
    Job,
    QueueFullError,
    Scheduler,
    Update,
)


class Answer:
    """Texts that are continued for one client.

    What is generated waits here for the client, at most the tokens that it asked for: a client that
    reads slowly keeps no slot.
    """

    def __init__(self, scheduler: Scheduler, streams: Sequence[TextStream]) -> None:
        """Queue the texts. Raises BusyError and UnavailableError. For the event loop's thread."""
        self.streams = streams
        self._scheduler = scheduler
        self._loop = asyncio.get_running_loop()
        self._updates: asyncio.Queue[tuple[int, Update]] = asyncio.Queue()
        self._jobs = [
            Job(stream, partial(self._deliver, index)) for index, stream in enumerate(streams)
        ]
        try:
            scheduler.submit(self._jobs)
        except QueueFullError as error:
            raise BusyError(error.message, code="queue_full") from None
        except ClosedError as error:
            raise UnavailableError(error.message) from None

    def _deliver(self, index: int, update: Update) -> None:
        self._loop.call_soon_threadsafe(self._updates.put_nowait, (index, update))

    async def updates(self) -> AsyncIterator[tuple[int, Update]]:
        """Yield what arrives for each text, until all are finished. Raises FailedError."""
        unfinished = len(self.streams)
        while unfinished:
            index, update = await self._updates.get()
            if update.failure is not None:
                raise FailedError(update.failure)
            yield index, update
            unfinished -= update.is_last

    def cancel(self) -> None:
        """Free the slots of texts that are not finished."""
        self._scheduler.cancel(self._jobs)
