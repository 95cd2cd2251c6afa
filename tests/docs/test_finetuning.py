"""Every command of docs/guides/finetuning.md, on a model that trains in a second."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from llmtrain.cli.app import run
from tests.checkout import ROOT
from tests.pretrained import save_pretrained

PAGE = (ROOT / "docs" / "guides" / "finetuning.md").read_text(encoding="utf-8")
SMALL = {
    "LLMTRAIN_MODEL__CONTEXT": "96",
    "LLMTRAIN_TRAIN__TOKENS_PER_STEP": "192",
    "LLMTRAIN_EVAL__SAMPLE_TOKENS": "4",
    "LLMTRAIN_DEVICE__PRECISION": "fp32",
    "LLMTRAIN_DEVICE__ATTENTION": "blocks",
    "LLMTRAIN_DEVICE__COMPILE": "false",
}


def commands() -> list[str]:
    """The lines of the page's shell blocks."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line]


def test_every_command_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in SMALL.items():
        monkeypatch.setenv(name, value)
    save_pretrained(Path("my-run"), max_position_embeddings=96)
    rows = re.findall(r"^\{.*\}$", PAGE, re.MULTILINE)
    assert len(rows) == 3
    more = [{"prompt": f"What is {n}?", "completion": f"{n}."} for n in range(20)]
    lines = [*rows[:2], *map(json.dumps, more)]
    pair = json.loads(rows[2])
    pairs = [{**pair, "prompt": f"{n}?", "chosen": "a", "rejected": "b"} for n in range(20)]
    text = "".join(json.dumps(each) + "\n" for each in (pair, *pairs))
    Path("prefs.jsonl").write_text(text, encoding="utf-8")
    Path("chat.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert len(commands()) >= 6
    for command in commands():
        words = shlex.split(command)
        assert words[0] == "llmtrain"
        assert run(words[1:]) == 0, (command, capsys.readouterr().err)
