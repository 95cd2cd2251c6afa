"""Conversations before fine-tuning: what carries loss is what will be trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmtrain.engine.inspect_chat import inspect_chat
from llmtrain.errors import DataError
from llmtrain.prepare.context import PrepareContext
from llmtrain.profile.load import load_profile
from llmtrain.profile.schema import Profile
from llmtrain.profile.setting import Setting
from tests.pretrained import save_pretrained

WORK = PrepareContext(1, lambda _: None, lambda: None)


def profile(file: Path) -> Profile:
    return load_profile("finetune-cpu", flags={"data.sources": Setting([str(file)], "")}).profile


def rows(directory: Path, *answers: str) -> Path:
    file = directory / "chat.jsonl"
    lines = [json.dumps({"prompt": "a?", "completion": answer}) + "\n" for answer in answers]
    file.write_text("".join(lines))
    return file


def test_a_conversation_is_shown_with_what_carries_loss(tmp_path: Path) -> None:
    model = save_pretrained(tmp_path / "model")
    file = rows(tmp_path, "b", "c" * 200)
    report = inspect_chat(profile(file), str(model), WORK, only_first=None)
    prompt = "<|endoftext|><|reserved_0|>user<|reserved_2|>a?<|reserved_1|>"
    prompt += "<|reserved_0|>assistant<|reserved_2|>"
    expected = [(prompt, False), ("b<|reserved_1|>", True)]
    assert [(s.text, s.carries_loss) for s in report.example] == expected
    assert (report.conversations, report.messages, report.left_out) == (2, 4, 1)
    assert report.context == 48
    assert report.origin == f"{file}:1"
    assert 0 < report.answer_tokens < report.tokens
    only = inspect_chat(profile(file), str(model), WORK, only_first=1)
    assert (only.conversations, only.left_out) == (1, 0)


def test_a_row_that_the_template_refuses_is_named(tmp_path: Path) -> None:
    model = save_pretrained(tmp_path / "model")
    template = (
        "{% for m in messages %}{{ raise_exception('bad') if m.content == 'c' }}{% generation %}"
    )
    (model / "chat_template.jinja").write_text(
        f"{template}{{{{ m.content }}}}{{% endgeneration %}}{{% endfor %}}"
    )
    with pytest.raises(DataError, match="bad") as failure:
        inspect_chat(profile(rows(tmp_path, "b", "c")), str(model), WORK, only_first=None)
    assert "chat.jsonl:2" in failure.value.message


def test_a_row_without_loss_is_named(tmp_path: Path) -> None:
    model = save_pretrained(tmp_path / "model")
    template = (
        "{% for m in messages %}{{ m.content }}{% endfor %}{% generation %}{% endgeneration %}"
    )
    (model / "chat_template.jinja").write_text(template)
    with pytest.raises(DataError, match="nothing that the assistant wrote") as failure:
        inspect_chat(profile(rows(tmp_path, "b")), str(model), WORK, only_first=None)
    assert "chat.jsonl:1" in failure.value.message
