"""A page for this machine alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection

import pytest

from llmtrain.errors import LlmtrainError, UsageError
from llmtrain.report.live import LivePage, PageServer


@contextmanager
def served(page: LivePage) -> Iterator[PageServer]:
    over = threading.Event()
    with PageServer(page, 0) as server:
        thread = threading.Thread(target=server.serve_until, args=(over.is_set,))
        thread.start()
        try:
            yield server
        finally:
            over.set()
            thread.join(10)


def get(server: PageServer, path: str = "/", host: str | None = None) -> tuple[int, bytes]:
    connection = HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    connection.request("GET", path, headers={} if host is None else {"Host": host})
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_the_page_is_served_on_loopback_only() -> None:
    with served(LivePage(lambda: "<p>é</p>")) as server:
        assert server.server_address[0] == "127.0.0.1"
        assert server.url.startswith("http://127.0.0.1:")
        assert get(server) == (200, "<p>é</p>".encode())
        assert get(server, "/../run.yaml")[0] == 404
        assert get(server, host="evil.example:80")[0] == 403
        assert get(server, host=f"localhost:{server.server_address[1]}")[0] == 200


def test_a_page_is_made_once_for_many_readers() -> None:
    made: list[int] = []

    def make() -> str:
        made.append(1)
        return "page"

    with served(LivePage(make)) as server:
        assert [get(server)[0] for _ in range(5)] == [200] * 5
    assert len(made) == 1


def test_a_run_that_is_gone_is_said_to_be() -> None:
    def gone() -> str:
        raise LlmtrainError("run.yaml cannot be read: é")

    with served(LivePage(gone)) as server:
        status, text = get(server)
    assert status == 503
    assert b"cannot be read" in text


def test_a_port_that_is_taken_is_refused() -> None:
    with served(LivePage(lambda: "")) as server, pytest.raises(UsageError, match="listened"):
        PageServer(LivePage(lambda: ""), server.server_address[1])
