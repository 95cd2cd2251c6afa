"""Rows of conversations: what is one, and what is refused with its place."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from llmtrain.data.chat.rows import conversation_text, read_conversation
from llmtrain.data.document import RecordOptions
from llmtrain.data.sources.resolve import resolve_sources
from llmtrain.errors import DataError

USER, ASSISTANT = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
SYSTEM, TOOL = {"role": "system", "content": "s"}, {"role": "tool", "content": "t"}


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"messages": [USER, ASSISTANT]}, [USER, ASSISTANT]),
        ({"prompt": "a", "completion": "b"}, [USER, ASSISTANT]),
        ({"prompt": [SYSTEM, USER], "completion": [ASSISTANT]}, [SYSTEM, USER, ASSISTANT]),
        (
            {"messages": [SYSTEM, USER, ASSISTANT, USER, ASSISTANT], "prompt": None, "id": 7},
            [SYSTEM, USER, ASSISTANT, USER, ASSISTANT],
        ),
        ({"messages": [USER, {**ASSISTANT, "content": ""}]}, [USER, {**ASSISTANT, "content": ""}]),
        ({"messages": [USER, {**ASSISTANT, "name": None}]}, [USER, ASSISTANT]),
        (
            {"messages": [USER, {"role": "assistant", "tool_calls": [{"f": 1}]}, TOOL, ASSISTANT]},
            [
                USER,
                {"role": "assistant", "tool_calls": [{"f": 1}], "content": ""},
                TOOL,
                ASSISTANT,
            ],
        ),
    ],
)
def test_a_row_is_a_conversation(row: dict[str, Any], messages: list[Any]) -> None:
    assert read_conversation(conversation_text(row, "here")) == messages


DEEP: list[Any] = []
for _ in range(60):
    DEEP = [DEEP]
BROKEN: dict[str, tuple[Any, str]] = {
    "no object": ([USER, ASSISTANT], "no row"),
    "a string": ("hello", "no row"),
    "other fields": ({"text": "hello"}, "no 'messages'"),
    "no completion": ({"prompt": "a"}, "not both"),
    "messages of a string": ({"messages": "hello"}, "not a list"),
    "no messages": ({"messages": []}, "not a list"),
    "a message of a string": ({"messages": ["a"]}, "message 1"),
    "a nested list": ({"messages": [USER, {**ASSISTANT, "content": [["b"]]}]}, "message 2"),
    "parts": (
        {"messages": [USER, {**ASSISTANT, "content": [{"type": "text", "text": "b"}]}]},
        "message 2",
    ),
    "no content": ({"messages": [USER, {"role": "assistant"}]}, "missing"),
    "a number": ({"messages": [USER, {**ASSISTANT, "content": 4}]}, "not a string"),
    "an unknown role": ({"messages": [USER, {"role": "gpt", "content": "b"}]}, "'gpt'"),
    "no role": ({"messages": [{"content": "b"}]}, "missing"),
    "the assistant first": ({"messages": [ASSISTANT, USER]}, "message 1 is the assistant's"),
    "two users": ({"messages": [USER, USER, ASSISTANT]}, "message 2 is the user's"),
    "two answers": ({"messages": [USER, ASSISTANT, ASSISTANT]}, "message 3"),
    "a late system": ({"messages": [USER, ASSISTANT, SYSTEM]}, "the system's"),
    "no assistant": ({"messages": [SYSTEM, USER]}, "carries loss"),
    "half a pair": ({"messages": [USER, {**ASSISTANT, "content": "\ud83d"}]}, "surrogate"),
    "a turn of 1 MB": ({"messages": [USER, {**ASSISTANT, "content": "b" * (1 << 20)}]}, "the most"),
    "tools": ({"messages": [USER, ASSISTANT], "tools": [{}]}, "tools"),
    "a deep value": ({"messages": [USER, {**ASSISTANT, "x": DEEP}]}, "deep"),
    "a field twice": ('{"prompt": "a", "prompt": "c", "completion": "b"}', "more than once"),
    "no JSON": ('{"prompt": "a", ', "not JSON"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_row_is_refused_with_its_line(name: str, tmp_path: Path) -> None:
    row, problem = BROKEN[name]
    file = tmp_path / "chat.jsonl"
    good = json.dumps({"messages": [USER, ASSISTANT]})
    is_text = isinstance(row, str) and row.startswith("{")
    file.write_text(f"{good}\n{row if is_text else json.dumps(row)}\n")
    with pytest.raises(DataError, match=problem) as failure:
        list(resolve_sources([str(file)], rows="chat").documents())
    assert f"{file}:2" in failure.value.message
    assert failure.value.exit_code == 5


def test_broken_rows_can_be_left_out(tmp_path: Path) -> None:
    file = tmp_path / "chat.jsonl"
    rows = [{"messages": [USER, ASSISTANT]}, {"messages": [USER]}, {"text": "a"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = resolve_sources([str(file)], rows="chat", skips_bad=True)
    assert [read_conversation(d.text) for d in corpus.documents()] == [[USER, ASSISTANT]]


def test_plain_text_has_no_conversations(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello\n")
    with pytest.raises(DataError, match="plain text"):
        resolve_sources([str(tmp_path / "notes.txt")], rows="chat")
    with pytest.raises(DataError, match="no conversations"):
        resolve_sources(["builtin:python"], rows="chat")


def test_every_format_gives_the_same_conversations(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as parquet

    prompts = [{"prompt": f"a{n}", "completion": "ü\n"} for n in range(3)]
    turns = [{"messages": [USER, {"role": "assistant", "content": str(n)}]} for n in range(3)]
    text = io.StringIO()
    writer = csv.DictWriter(text, ["completion", "prompt"])
    writer.writeheader()
    writer.writerows(prompts)
    (tmp_path / "a.csv").write_text(text.getvalue(), newline="")
    (tmp_path / "a.json").write_text(json.dumps(prompts))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    parquet.write_table(pa.Table.from_pylist(prompts), tmp_path / "a.parquet")
    parquet.write_table(pa.Table.from_pylist(turns), tmp_path / "b.parquet")
    with pa.OSFile(str(tmp_path / "b.arrow"), "wb") as sink:
        table = pa.Table.from_pylist(turns)
        with pa.ipc.new_file(sink, table.schema) as file:
            file.write_table(table)

    def read(name: str) -> list[str]:
        corpus = resolve_sources([str(tmp_path / name)], rows="chat")
        return [document.text for document in corpus.documents()]

    expected = [conversation_text(row, "") for row in prompts]
    for name in ("a.csv", "a.json", "a.jsonl", "a.parquet"):
        assert read(name) == expected, name
    for name in ("b.parquet", "b.arrow"):
        assert read(name) == [conversation_text(row, "") for row in turns], name


def test_texts_are_the_default() -> None:
    assert RecordOptions().rows == "text"
