"""Serve a page on this machine alone, rendered again while it is requested."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from llmtrain.errors import LlmtrainError, UsageError

_LOOPBACK = "127.0.0.1"
_FRESH_S = 2.0
_POLL_S = 0.3


class LivePage:
    """The newest page, rendered at most every two seconds however many requests there are."""

    def __init__(self, make: Callable[[], str]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._page, self._made_s = b"", -_FRESH_S

    def get(self) -> bytes:
        """Return the page in UTF-8. Raises LlmtrainError where the run cannot be read."""
        with self._lock:
            if time.monotonic() - self._made_s >= _FRESH_S:
                self._page = self._make().encode()
                self._made_s = time.monotonic()
            return self._page


class PageServer(ThreadingHTTPServer):
    """Answers requests of this machine with one page, and others with an error."""

    daemon_threads = True
    allow_reuse_address = sys.platform != "win32"  # where it would take a port that is in use

    def __init__(self, page: LivePage, port: int) -> None:
        """Listen on loopback; port 0 is any free one. Raises UsageError if it is taken."""
        self.page = page
        self.timeout = _POLL_S
        try:
            super().__init__((_LOOPBACK, port), _Handler)
        except OSError as error:
            raise UsageError(
                f"port {port} cannot be listened on: {error.strerror}",
                hint="--port 0: any free one",
            ) from None

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"http://{_LOOPBACK}:{self.server_address[1]}/"

    def serve_until(self, is_over: Callable[[], bool]) -> None:
        """Answer requests until `is_over`, which is asked several times a second."""
        while not is_over():
            self.handle_request()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a reader that went away: the next one gets the page."""


class _Handler(BaseHTTPRequestHandler):
    server: PageServer

    def do_GET(self) -> None:
        # Another site's page could otherwise read the report under a name that it resolves here.
        host = (self.headers.get("Host") or "").rpartition(":")[0]
        if host not in (_LOOPBACK, "localhost"):
            self.send_error(HTTPStatus.FORBIDDEN, "not this host")
        elif self.path != "/":
            self.send_error(HTTPStatus.NOT_FOUND)
        else:
            self._answer()

    def _answer(self) -> None:
        try:
            page = self.server.page.get()
        except LlmtrainError as error:
            self.send_error(HTTPStatus.SERVICE_UNAVAILABLE, explain=error.message)
            return
        self.send_response(HTTPStatus.OK)
        for name, value in (
            ("Content-Type", "text/html; charset=utf-8"),
            ("Content-Length", str(len(page))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Log nothing: the terminal belongs to the command."""
