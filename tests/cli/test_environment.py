"""A variable that looks like one of llmtrain's, and is none, is warned of."""

from __future__ import annotations

import pytest

from llmtrain.cli.environment import unknown_variables
from tests.cli.conftest import Command


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("LLMTRAIN_FOO", ""),
        ("LLMTRAIN_CACHEDIR", "; did you mean LLMTRAIN_CACHE_DIR?"),
        ("LLMTRAIN_TRAIN_STEPS", "; did you mean LLMTRAIN_TRAIN__STEPS?"),
        ("LLMTRAIN_TOKENS_PER_STEP", "; did you mean LLMTRAIN_TRAIN__TOKENS_PER_STEP?"),
    ],
)
def test_an_unknown_variable_is_named(name: str, meant: str) -> None:
    text = f"the environment variable {name} is not used{meant}"
    assert list(unknown_variables({name: "1", "PATH": "/bin"})) == [text]


def test_known_variables_are_not_warned_of() -> None:
    known = {"LLMTRAIN_CACHE_DIR": "x", "LLMTRAIN_TRAIN__STEPS": "5", "LLMTRAINER": "x"}
    assert list(unknown_variables(known)) == []
    assert list(unknown_variables({"LLMTRAIN_LAUNCHED": "x", "LLMTRAIN_FOO": "1"})) == []


def test_a_command_warns_and_goes_on(llmtrain: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMTRAIN_FOO", "1")
    outcome = llmtrain("profiles", "list", "--json")
    assert outcome.code == 0
    assert outcome.document["profiles"]
    assert outcome.err == "warning: the environment variable LLMTRAIN_FOO is not used\n"
