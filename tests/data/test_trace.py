"""A passage is found where it is, and what cannot be read is no reason to fail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NoReturn

import pytest

from llmtrain.data import trace as trace_module
from llmtrain.data.trace import trace_passages


def trace(passages: list[str], *specs: Path, limit_s: float = 60.0) -> list[str]:
    return trace_passages(passages, [str(spec) for spec in specs], "text", limit_s=limit_s)


def test_files_and_lines_are_named(tmp_path: Path) -> None:
    plain, lines = tmp_path / "plain.txt", tmp_path / "lines.jsonl"
    plain.write_text("one two three\nfour five six\n")
    texts = ("seven eight nine", "four five six and more")
    lines.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))

    found = trace(["five six", "eight nine", "nowhere"], plain, lines)
    assert found == [
        f"{plain} from character 19 on",
        f"{lines}:1 from character 6 on",
    ]
    assert trace(["five six"], lines, plain) == [f"{lines}:2 from character 5 on"]
    assert trace(["five six", "five six"], plain) == [f"{plain} from character 19 on"]


def test_sources_that_are_gone_or_bad_are_passed_over(tmp_path: Path) -> None:
    good, bad = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    good.write_text('{"text": "one two three"}\n{"text": 3}\n')
    bad.write_text("not JSON\n")
    assert trace(["two three"], tmp_path / "gone.txt") == []
    assert trace(["two three", "four"], good, bad) == [f"{good}:1 from character 4 on"]


def test_it_gives_up_in_time(tmp_path: Path) -> None:
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"text": "one"}\n{"text": "two"}\n')
    assert trace(["two"], lines, limit_s=-1.0) == []


def test_nothing_is_brought_here_to_find_a_passage(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*_args: object, **_options: object) -> NoReturn:
        raise AssertionError("asked for")

    monkeypatch.setattr(trace_module, "resolve_sources", resolve)
    specs = ["s3://box/a.txt", "https://host/b.txt", "hf://owner/name", "-"]
    assert trace_passages(["text"], specs, "text", limit_s=60) == []
