"""Listen, answer, and end in order when asked to."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import uvicorn

from llmtrain.errors import UsageError
from llmtrain.serve.access import LOOPBACK
from llmtrain.serve.app import Service, make_app

SHUTDOWN_S = 30  # for answers that are being given when the server is to end
_HEADER_BYTES = 1 << 14  # that may wait for their end
_IDLE_CONNECTIONS = 256  # beside those that are answered or wait
# Longer than clients keep idle connections (httpx and OpenAI's: 5 s): with the same time, one may
# send a request just as the server closes.
_KEEP_ALIVE_S = 20


@dataclass(frozen=True, slots=True)
class Address:
    """The host and port that a server listens on."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """True if only this machine can connect."""
        return self.host in LOOPBACK

    @property
    def url(self) -> str:
        """The URL that a client on this machine connects to."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


def listen(address: Address) -> socket.socket:
    """Return a socket that listens at `address`. Raises UsageError if it cannot be had."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        if sys.platform != "win32":  # where it would take a port that is in use
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((address.host, address.port))
    except OSError as error:
        listening.close()
        raise UsageError(
            f"cannot listen at {address.host} port {address.port}: {error.strerror or error}",
            hint="--port names another one, --port 0 any that is free",
        ) from None
    return listening


class _Server(uvicorn.Server):
    """Leaves signals to the caller: uvicorn would end the process by the signal, not by 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle no signals."""
        yield


class Serving:
    """A server that runs until it is stopped."""

    def __init__(self, service: Service, listening: socket.socket, most_clients: int) -> None:
        self._service = service
        self._socket = listening
        config = uvicorn.Config(
            make_app(service),
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=most_clients + _IDLE_CONNECTIONS,
            timeout_keep_alive=_KEEP_ALIVE_S,
            h11_max_incomplete_event_size=_HEADER_BYTES,
            timeout_graceful_shutdown=SHUTDOWN_S,
        )
        self._server = _Server(config)

    @property
    def is_ready(self) -> bool:
        """True once requests are answered."""
        return self._server.started

    def stop(self, *, at_once: bool = False) -> None:
        """End once what is being answered is answered; from any thread or signal handler."""
        self._server.should_exit = True
        self._server.force_exit = at_once

    def run(self, on_ready: Callable[[], None]) -> None:
        """Answer requests until stopped; `on_ready` is called once they are."""
        self._service.scheduler.start()
        try:
            asyncio.run(self._serve(on_ready))
        finally:
            self._socket.close()
            self._service.scheduler.close(0 if self._server.force_exit else SHUTDOWN_S)

    async def _serve(self, on_ready: Callable[[], None]) -> None:
        serving = asyncio.ensure_future(self._server.serve(sockets=[self._socket]))
        while not (self.is_ready or serving.done()):
            await asyncio.sleep(0.01)
        if self.is_ready:
            on_ready()
        await serving
