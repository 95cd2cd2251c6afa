"""Completion in the shells themselves: bash, zsh and fish, each where it is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# Each prints what its shell would offer for a line that ends with {word}.
_PROGRAMS = {
    "bash": """
        eval "$(_LLMTRAIN_COMPLETE=source_bash llmtrain)"
        COMP_WORDS=({words}) COMP_CWORD={last}
        _llmtrain_completion llmtrain
        printf '%s\\n' "${{COMPREPLY[@]}}"
        complete -p llmtrain
    """,
    "zsh": """
        compdef() {{ print -r -- "compdef $*" }}
        _arguments() {{ print -r -- "$@" }}
        eval "$(_LLMTRAIN_COMPLETE=source_zsh llmtrain)"
        words=({words}) CURRENT={count}
        _llmtrain_completion
    """,
    "fish": """
        _LLMTRAIN_COMPLETE=source_fish llmtrain | source
        complete --do-complete "{words}"
    """,
}


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A PATH whose first directory has the command `llmtrain`."""
    program = tmp_path / "llmtrain"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m llmtrain "$@"\n')
    program.chmod(0o755)
    return os.pathsep.join([str(tmp_path), os.environ["PATH"]])


def offered(shell: str, line: str, path: str, place: Path) -> str:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    words = line.split()
    script = _PROGRAMS[shell].format(words=line, last=len(words) - 1, count=len(words))
    no_settings = {"bash": ["--norc"], "zsh": ["-f"], "fish": ["--no-config"]}[shell]
    answer = subprocess.run(
        [program, *no_settings, "-c", script],
        cwd=place,
        env={**os.environ, "PATH": path, "HOME": str(place), "XDG_CONFIG_HOME": str(place)},
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert answer.stderr == ""
    return answer.stdout


@pytest.mark.skipif(os.name == "nt", reason="shells of Unix")
@pytest.mark.parametrize("shell", _PROGRAMS)
def test_a_shell_offers_commands_pages_and_runs(shell: str, path: str, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "cpu-tiny-1"
    run.mkdir(parents=True)
    (run / "run.yaml").touch()
    assert "finetune" in offered(shell, "llmtrain fine", path, tmp_path)
    assert "getting-started" in offered(shell, "llmtrain help get", path, tmp_path)
    assert "cpu-tiny-1" in offered(shell, "llmtrain eval cpu", path, tmp_path)
