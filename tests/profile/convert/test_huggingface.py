"""TrainingArguments: every field that transformers has, and the values that matter."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from transformers import TrainingArguments

from llmtrain.profile.convert.huggingface import DEFAULTS, RULES
from llmtrain.profile.convert.rules import convert


def settings(**given: Any) -> dict[str, Any]:
    return dict(convert(given, RULES, DEFAULTS, "huggingface").settings)


def test_every_field_of_transformers_has_a_rule() -> None:
    assert {field.name for field in dataclasses.fields(TrainingArguments)} - RULES.keys() == set()


@pytest.mark.parametrize(
    ("given", "steps"),
    [
        ({"warmup_steps": 30}, 30),
        ({"warmup_steps": 0.1, "max_steps": 200}, 20),
        ({"warmup_ratio": 0.1, "max_steps": 200}, 20),
    ],
)
def test_a_warmup_is_steps_or_a_share(given: dict[str, Any], steps: int) -> None:
    found = convert({**given}, RULES, DEFAULTS, "huggingface")
    by_key = {entry.name: entry.settings for entry in found.entries}
    assert {"optim.warmup_steps": steps} in by_key.values()


def test_intervals_count_where_the_strategy_is_steps() -> None:
    assert settings(eval_strategy="steps", eval_steps=50)["eval.every_steps"] == 50
    assert "eval.every_steps" not in settings(eval_strategy="epoch", eval_steps=50)
    assert settings(save_strategy="steps", save_steps=9)["checkpoint.every_steps"] == 9


def test_no_clipping_is_null() -> None:
    assert settings(max_grad_norm=0.0)["train.gradient_clip"] is None
