"""`chat` in a pipe, and on a terminal."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.chat_model import save_chat_model
from tests.cli.conftest import Command

FP32 = ("--force-cpu", "--max-tokens", 12, "--temperature", 0)


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("chat"))


@pytest.fixture(autouse=True)
def nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled step is for bf16."""
    monkeypatch.setenv("LLMTRAIN_DEVICE__PRECISION", "fp32")


def said(llmtrain: Command, chat_model: Path, lines: str, *more: object) -> tuple[str, str]:
    outcome = llmtrain("chat", chat_model, *FP32, *more, stdin=lines.encode())
    assert outcome.code == 0, outcome.err
    return outcome.out, outcome.err


def test_messages_of_a_pipe_are_answered(llmtrain: Command, chat_model: Path, place: Path) -> None:
    lines = "Hi\nand then?\n/save said.jsonl\n"
    out, _ = said(llmtrain, chat_model, lines, "--system", "Be brief.")
    (line,) = (place / "said.jsonl").read_text(encoding="utf-8").splitlines()
    messages = json.loads(line)["messages"]
    roles = [each["role"] for each in messages]
    assert roles == ["system", "user", "assistant", "user", "assistant"]
    assert [each["content"] for each in messages[:2]] == ["Be brief.", "Hi"]
    assert out == messages[2]["content"] + "\n" + messages[4]["content"] + "\n"
    # The same messages at once get the same second answer.
    again, _ = said(llmtrain, chat_model, "Hi\nand then?\n", "--system", "Be brief.")
    assert again == out


def test_commands_change_the_conversation(llmtrain: Command, chat_model: Path, place: Path) -> None:
    lines = (
        "one\n/reset\ntwo\\\nlines\n/save a.jsonl\n/system Count.\nthree\n/save b.jsonl\n"
        "/save b.jsonl\n/nothing\n/system\n/quit\nnever\n"
    )
    out, err = said(llmtrain, chat_model, lines)
    first, second = (
        json.loads((place / name).read_text(encoding="utf-8"))["messages"]
        for name in ("a.jsonl", "b.jsonl")
    )
    assert [each["content"] for each in first[::2]] == ["two\nlines"]
    assert [each["role"] for each in second] == ["system", "user", "assistant"]
    assert "b.jsonl is there already" in err
    assert "There is no /nothing" in err
    assert len(re.findall("forgotten", err)) == 3
    assert "never" not in out + err


def test_a_conversation_that_outgrows_the_context_goes_on(
    llmtrain: Command, chat_model: Path
) -> None:
    out, err = said(llmtrain, chat_model, "tell me more of it\n" * 12 + "word " * 300 + "\n")
    assert "the message has" in err
    assert "the model's context is 96" in err
    assert len(out.splitlines()) >= 12


def test_a_model_that_was_never_taught_to_chat_says_so(llmtrain: Command, trained: Path) -> None:
    outcome = llmtrain("chat", trained, stdin=b"Hi\n")
    assert (outcome.code, outcome.out) == (2, "")
    assert "was never taught to chat" in outcome.err
    assert "llmtrain generate" in outcome.err


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are POSIX")
def test_on_a_terminal_ctrl_c_stops_the_answer_alone(chat_model: Path, tmp_path: Path) -> None:
    import pty

    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "llmtrain", "chat", str(chat_model), "--max-tokens", "5000"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "60", "NO_COLOR": "1"}
    process = subprocess.Popen(
        command,
        stdin=follower,
        stdout=follower,
        stderr=follower,
        cwd=tmp_path,
        env=environment,
        start_new_session=True,
    )
    os.close(follower)
    seen = ""

    def wait_for(pattern: str) -> None:
        nonlocal seen
        deadline_s = time.monotonic() + 60
        while not re.search(pattern, seen):
            assert time.monotonic() < deadline_s, seen
            try:
                seen += os.read(leader, 1 << 16).decode(errors="replace")
            except OSError:  # the other end is closed
                assert re.search(pattern, seen), seen

    try:
        wait_for("You talk to")
        os.write(leader, b"Hi\n")
        wait_for(r"tokens/s")  # its answer ends by itself, at the context
        seen = ""
        os.write(leader, b"more\n")
        wait_for(r"more\r\n\x1b\[\?25l")  # the answer has begun
        process.send_signal(signal.SIGINT)
        wait_for("tokens/s")
        os.write(leader, b"/save said.jsonl\n")
        wait_for(r"4 messages are in said\.jsonl[^>]*> ")  # it reads again
        os.write(leader, b"\x04")
        assert process.wait(30) == 0
    finally:
        process.kill()
        os.close(leader)
