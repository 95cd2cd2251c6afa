"""nanoGPT's Python: plain values are read, and nothing is run."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmtrain.profile.convert.nanogpt import DEFAULTS, RULES, read_assignments
from llmtrain.profile.convert.rules import Unevaluated, convert


def test_plain_values_and_arithmetic_are_read() -> None:
    text = "a = 5 * 8\nb = -1e-3\nc: int = 2\nd = 'x'\ne = [1, 2]\nf = 6e-4 / 10\nimport time\n"
    found = read_assignments(text, "it")
    assert found == {"a": 40, "b": -1e-3, "c": 2, "d": "x", "e": [1, 2], "f": 6e-4 / 10}


@pytest.mark.parametrize(
    "expression",
    ["str(1)", "open('made', 'w')", "2 ** 9", "a", "1 / 0", "'a' * 9", "1e308 * 10", "10 ** 99"],
)
def test_anything_else_is_kept_as_text_and_listed(
    expression: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = read_assignments(f"out_dir = {expression}", "it")
    assert found == {"out_dir": expression}
    assert isinstance(found["out_dir"], Unevaluated)
    assert list(tmp_path.iterdir()) == []
    entry = convert(found, RULES, {}, "nanogpt").entries[0]
    assert (entry.outcome, "not run" in entry.note) == ("dropped", True)


def test_a_deep_expression_is_no_problem() -> None:
    found = read_assignments(f"n_layer = {'+'.join('1' * 500)}", "it")
    assert isinstance(found["n_layer"], Unevaluated)


def test_the_defaults_are_gpt2() -> None:
    found = convert({}, RULES, DEFAULTS, "nanogpt").settings
    assert found["train.tokens_per_step"] == 491_520
    assert (found["model.hidden_size"], found["model.intermediate_size"]) == (768, 2048)
    assert found["optim.final_learning_rate_fraction"] == 0.1
