"""A run says what it trains on before anything of it is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmtrain.engine.text_notes import text_notes, unusable_text
from llmtrain.prepare.context import PrepareContext
from llmtrain.prepare.dataset import resolve_corpus
from llmtrain.profile.load import load_profile
from llmtrain.profile.setting import Setting


def notes(here: Path, *specs: str) -> list[str]:
    flags = {"data.sources": Setting(list(specs), "--data")} if specs else {}
    loaded = load_profile(environment={}, flags=flags)
    work = PrepareContext(1, lambda event: None, lambda: None)
    return list(text_notes(loaded, lambda: resolve_corpus(loaded.profile.data, work), here))


def test_a_source_has_its_size_and_origin(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x" * 2048)
    (tmp_path / "b.md").write_text("x" * 1024)
    assert notes(tmp_path, str(tmp_path)) == [f"text: {tmp_path}, 2 files, 3 KiB (--data)"]
    assert notes(tmp_path, str(tmp_path / "a.txt")) == [
        f"text: {tmp_path / 'a.txt'}, 1 file, 2 KiB (--data)"
    ]


def test_what_is_elsewhere_or_missing_has_no_size(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.txt")
    assert notes(tmp_path, "s3://a/b", "-", missing) == [
        "text: s3://a/b (--data)",
        "text: - (--data)",
        f"text: {missing} (--data)",
    ]


@pytest.mark.parametrize(
    ("name", "is_text"),
    [
        ("notes.txt", True),
        ("src/a.py", True),
        ("photo.jpg", False),
        (".hidden.txt", False),
        ("runs/samples.txt", False),
    ],
)
def test_text_beside_the_built_in_one_is_pointed_out(
    tmp_path: Path, name: str, is_text: bool
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    first, *rest = notes(tmp_path)
    assert first.startswith("text: builtin:python, ")
    assert first.endswith("iB (default)")
    assert rest == (["the files here are not used; --data . trains on them"] if is_text else [])
    assert len(notes(tmp_path, "builtin:python")) == 1


def test_local_text_that_cannot_be_used_is_named_by_a_plan(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    missing = str(tmp_path / "missing.txt")
    specs = [str(tmp_path / "a.txt"), "s3://a/b", "-", missing]
    flags = {"data.sources": Setting(specs, "--data")}

    (text,) = unusable_text(load_profile(environment={}, flags=flags))

    assert missing in text
    assert "--data" in text


def test_a_plan_warns_of_what_training_would_refuse_and_of_nothing_else(tmp_path: Path) -> None:
    chat, mixed = tmp_path / "chat.jsonl", tmp_path / "mixed.jsonl"
    turns = [{"role": role, "content": "a"} for role in ("user", "assistant")]
    chat.write_text(json.dumps({"messages": turns}))
    mixed.write_text('{"other": 1}\n{"text": "a"}\n')

    def warnings(path: Path, **data: str) -> list[str]:
        settings = {"sources": [str(path)], **data}
        flags = {f"data.{key}": Setting(value, "--set") for key, value in settings.items()}
        return list(unusable_text(load_profile(environment={}, flags=flags)))

    assert warnings(chat, rows="chat") == []
    assert warnings(mixed, on_error="skip") == []
    assert "has no field 'text'" in warnings(chat)[0]
    assert "has no field 'text'" in warnings(mixed)[0]
    mine = tmp_path / "mine.txt"
    mine.write_text("text")
    assert "missing.txt" in warnings(mine, validation=str(tmp_path / "missing.txt"))[0]
