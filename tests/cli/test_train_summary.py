"""The closing lines of a training run name commands that can be pasted."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from llmtrain.cli.train_summary import _prompt_option, next_commands
from llmtrain.train.events import TrainResult
from tests.cli.conftest import Command


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("It was the best of times, it was the worst of times", "It was the best of times, it"),
        ("\n\n  It's late\nand dark", "It's late"),
        ("def f(x):\n    return x", "def f(x):"),
        ("x" * 31, None),
        ("\x1b[2J now", None),
        ("", None),
        (None, None),
    ],
)
def test_the_prompt_is_the_beginning_of_the_text(text: str | None, prompt: str | None) -> None:
    expected = [] if prompt is None else ["--prompt", prompt]
    assert shlex.split(_prompt_option(text)) == expected


def test_the_next_command_continues_the_runs_own_text(llmtrain: Command, place: Path) -> None:
    err = llmtrain("train", "-p", "tiny.yaml", "--steps", 2, "--out", "a run").err
    line = next(line for line in err.splitlines() if line.startswith("generate: "))
    words = shlex.split(line.removeprefix("generate: "))
    assert words[1:3] == ["generate", "a run"]
    prompt = words[words.index("--prompt") + 1]
    assert prompt in (place / "corpus.txt").read_text()
    assert llmtrain(*words[1:], "--max-tokens", 2).out.startswith(prompt)


@pytest.mark.parametrize("is_chat", [False, True])
def test_a_model_that_learnt_to_answer_is_to_be_talked_to(is_chat: bool, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("")
    result = TrainResult(
        *(tmp_path, tmp_path, 1, 8, 1.0, None, None, None, None, 0, None, "done"),
        prompt_example="user hello assistant",
        is_chat=is_chat,
    )
    command = "chat:     llmtrain chat" if is_chat else "generate: llmtrain generate"
    assert next_commands(result)[-1].startswith(command)
