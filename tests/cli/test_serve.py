"""`serve` as a process: where it listens, and how it ends."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.conftest import Command, complaints

httpx = pytest.importorskip("httpx")


@contextmanager
def served(trained: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server process and its first line."""
    command = [sys.executable, "-m", "llmtrain", "serve", str(trained), "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline()
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(autouse=True)
def nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled step is for bf16."""
    monkeypatch.setenv("LLMTRAIN_DEVICE__PRECISION", "fp32")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM")
def test_sigterm_lets_answers_end_and_exits_with_0(trained: Path) -> None:
    with served(trained) as (process, line):
        found = re.fullmatch(r"serving run at (http://127\.0\.0\.1:\d+)\n", line)
        assert found, line
        url = found[1]
        body = {"prompt": "abc", "max_tokens": 20, "stream": True, "temperature": 2}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=30) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            rest = [each for each in lines if each]
        assert rest[-1] == "data: [DONE]"
        assert process.wait(30) == 0


def test_the_document_says_where_clients_connect(trained: Path) -> None:
    with served(trained, "--json", "--slots", "2", "--queue", "0") as (process, first):
        assert process.stdout is not None
        text = first
        while not text.rstrip().endswith("\n}"):
            text += process.stdout.readline()
        document = json.loads(text)
        assert complaints("serve", document) == []
        assert (document["slots"], document["queue"], document["can_chat"]) == (2, 0, False)
        listed = httpx.get(f"{document['url']}/v1/models", timeout=30).json()
        assert listed["data"][0]["id"] == document["model"]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--host", "0.0.0.0"), "there is no key"),
        (("--host", "::"), "there is no key"),
        (("--host", "127.0.0.1.example"), "there is no key"),
        (("--api-key", "short"), "at least 16"),
        (("--api-key", "with spaces in its middle"), "without spaces"),
        (("--port", "65536"), "--port"),
        (("--slots", "0"), "--slots"),
        (("--slots", "100000000"), "the limit is"),
    ],
)
def test_unsafe_and_impossible_servers_are_refused(
    llmtrain: Command, trained: Path, options: tuple[str, str], why: str
) -> None:
    outcome = llmtrain("serve", trained, "--port", 0, *options)
    assert outcome.code == (3 if "limit" in why else 2)
    assert why in outcome.err
    assert "hint:" in outcome.err
    assert outcome.out == ""


def test_a_port_that_is_taken_is_named(llmtrain: Command, trained: Path) -> None:
    import socket

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        outcome = llmtrain("serve", trained, "--port", port)
    assert outcome.code == 2
    assert f"port {port}" in outcome.err


def test_the_key_may_be_in_the_environment(
    llmtrain: Command, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMTRAIN_API_KEY", "short")
    outcome = llmtrain("serve", trained)
    assert outcome.code == 2
    assert "at least 16" in outcome.err
    assert "is not used" not in outcome.err
