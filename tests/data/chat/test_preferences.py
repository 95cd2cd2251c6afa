"""Rows of preferences: what is one, and what is refused with its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmtrain.data.chat.preferences import preference_text, read_preference, row_kind
from llmtrain.data.chat.rows import conversation_text
from llmtrain.data.sources.resolve import resolve_sources
from llmtrain.errors import DataError

USER, GOOD = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
BAD, SYSTEM = {"role": "assistant", "content": "c"}, {"role": "system", "content": "s"}
MORE = {"role": "user", "content": "d"}


@pytest.mark.parametrize(
    ("row", "prompt", "chosen", "rejected"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, [USER], [GOOD], [BAD]),
        (
            {"prompt": [SYSTEM, USER], "chosen": [GOOD], "rejected": "c", "score": 7},
            [SYSTEM, USER],
            [GOOD],
            [BAD],
        ),
        ({"prompt": "a", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, [USER], [GOOD], [BAD]),
        ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, [USER], [GOOD], [BAD]),
        (
            {"chosen": [USER, GOOD, MORE, GOOD], "rejected": [USER, GOOD, MORE, BAD]},
            [USER, GOOD, MORE],
            [GOOD],
            [BAD],
        ),
        (
            {"chosen": [USER, GOOD, MORE, GOOD], "rejected": [USER, GOOD]},
            [USER],
            [GOOD, MORE, GOOD],
            [GOOD],
        ),
        ({"prompt": "a", "chosen": "", "rejected": "c"}, [USER], [{**GOOD, "content": ""}], [BAD]),
    ],
)
def test_a_row_is_a_preference(
    row: dict[str, Any], prompt: list[Any], chosen: list[Any], rejected: list[Any]
) -> None:
    found = read_preference(preference_text(row, "here"))
    assert (found.prompt, found.chosen, found.rejected) == (prompt, chosen, rejected)


BROKEN: dict[str, tuple[Any, str]] = {
    "no object": (["a"], "no row"),
    "no chosen": ({"prompt": "a", "rejected": "c"}, "no 'chosen'"),
    "no rejected": ({"prompt": "a", "chosen": "c", "rejected": None}, "no 'rejected'"),
    "a conversation": ({"messages": [USER, GOOD]}, "of one kind"),
    "equal answers": ({"prompt": "a", "chosen": "b", "rejected": "b"}, "equal"),
    "no prompt": ({"chosen": "b", "rejected": "c"}, "no 'prompt'"),
    "no shared prompt": (
        {"chosen": [USER, GOOD], "rejected": [MORE, BAD]},
        "do not begin with the same",
    ),
    "a prompt that answers": (
        {"prompt": [USER, GOOD], "chosen": "b", "rejected": "c"},
        "chosen: message 3 is the assistant's",
    ),
    "an answer of the user": (
        {"prompt": "a", "chosen": [USER], "rejected": "c"},
        "chosen: message 2 is the user's",
    ),
    "an answer that ends with the user": (
        {"prompt": "a", "chosen": "b", "rejected": [BAD, USER]},
        "rejected: the answer does not begin and end",
    ),
    "no answer": ({"prompt": "a", "chosen": [], "rejected": "c"}, "no answer"),
    "a number": ({"prompt": "a", "chosen": 1, "rejected": "c"}, "not a string"),
    "a nested list": ({"prompt": "a", "chosen": "b", "rejected": [["c"]]}, "rejected: message 1"),
    "half a character": ({"prompt": "a", "chosen": "b", "rejected": "\ud800"}, "not plain JSON"),
    "a long answer": ({"prompt": "a", "chosen": "b", "rejected": "c" * (1 << 20)}, "1 MiB"),
    "tools": ({"prompt": "a", "chosen": "b", "rejected": "c", "tools": [{}]}, "tools"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_row_is_refused_with_its_place(name: str) -> None:
    row, problem = BROKEN[name]
    with pytest.raises(DataError, match=problem) as caught:
        preference_text(row, "prefs.jsonl:7")
    assert caught.value.message.startswith("prefs.jsonl:7")


def test_the_kind_of_a_row_is_known_by_its_fields() -> None:
    assert row_kind({"prompt": "a", "chosen": "b", "rejected": "c"}) == "preferences"
    assert row_kind({"prompt": "a", "chosen": "b"}) == "preferences"
    assert row_kind({"messages": [USER], "chosen": "b"}) == "chat"
    assert row_kind({"prompt": "a", "completion": "b"}) == "chat"
    assert row_kind("a") == "chat"


def test_a_preference_among_conversations_is_refused() -> None:
    with pytest.raises(DataError, match="of one kind"):
        conversation_text({"prompt": "a", "chosen": "b", "rejected": "c"}, "here")


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_every_format_with_rows_has_preferences(tmp_path: Path, suffix: str) -> None:
    rows = [{"id": str(n), "prompt": "a", "chosen": f"b{n}", "rejected": "c"} for n in range(3)]
    file = tmp_path / f"prefs.{suffix}"
    if suffix == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif suffix == "json":
        file.write_text(json.dumps(rows))
    elif suffix == "csv":
        lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
        file.write_text("\n".join(lines))
    else:
        pa = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pa.Table.from_pylist(rows), file)
    corpus = resolve_sources([str(file)], rows="preferences")
    found = [read_preference(document.text) for document in corpus.documents()]
    assert [each.chosen[0]["content"] for each in found] == ["b0", "b1", "b2"]
    kinds = resolve_sources([str(file)], rows="kind")
    assert {document.text for document in kinds.documents()} == {"preferences"}
