"""docs/guides/data.md does what it says: its commands run, on a text of the kind they name."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import textwrap
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tests.small import ENVIRONMENT

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "guides" / "data.md").read_text(encoding="utf-8")
BLOCKS: list[str] = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
COMMANDS = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]


def pages() -> list[str]:
    """English of some length: parts of the documentation."""
    texts = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").rglob("*.md"))]
    return [text[i : i + 3000] for text in texts for i in range(0, len(text) - 3000, 3000)]


@pytest.fixture
def furnished(place: Path, llmtrain: Command, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The texts that the page names."""
    first, second, third, *rest = pages()
    files = {
        "notes/a.md": first + second,
        "notes/archive/old.md": second[:200],
        "my-repo/main.py": Path(textwrap.__file__).read_text(encoding="utf-8"),
        "held-out.txt": third,
        "books/one.txt": "".join(rest[:4]),
        "scrape.jsonl": "".join(json.dumps({"body": text}) + "\n" for text in rest[4:]),
    }
    for name, text in files.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    for name, value in {**ENVIRONMENT, "LLMTRAIN_TRAIN__STEPS": "2"}.items():
        monkeypatch.setenv(name, value)
    flags = ("--data", "books/one.txt", "--vocab-size", "400", "--out", "llama")
    assert llmtrain("tokenizer", "train", *flags).code == 0
    return place


def test_every_command_runs(furnished: Path, llmtrain: Command) -> None:
    """But the one that needs the network."""
    ran = []
    for line in COMMANDS:
        words = shlex.split(line, comments=True)
        if words[0] == "llmtrain" and "hf://" not in line:
            outcome = llmtrain(*words[1:], *(["--out", f"run-{len(ran)}"] * (words[1] == "train")))
            assert outcome.code == 0, f"{line}: {outcome.err}"
            ran.append(words[1])
    assert len(ran) == len(COMMANDS) - 2
    assert ran.count("train") >= 6


def test_text_goes_through_the_pipe(furnished: Path, llmtrain: Command) -> None:
    (line,) = (line for line in COMMANDS if "|" in line)
    assert line.startswith("cat notes/*.md | ")
    text = (furnished / "notes" / "a.md").read_bytes()
    shutil.copytree(furnished / "llama", furnished / "tok")
    for command in line.split(" | ")[1:]:
        outcome = llmtrain(*shlex.split(command)[1:], stdin=text)
        assert outcome.code == 0
        text = outcome.out.encode()
    assert text == (furnished / "notes" / "a.md").read_bytes()
