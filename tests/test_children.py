"""Processes of our own import what we import, wherever the user stands."""

from __future__ import annotations

import subprocess
from pathlib import Path

from llmtrain.children import MAIN, python_command


def test_a_file_in_the_working_directory_is_no_library(tmp_path: Path) -> None:
    for name in ("typer", "sentencepiece", "json", "llmtrain"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('taken from the data')")
    command = python_command(MAIN, "profiles", "list", "--json")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert '"cpu-tiny"' in done.stdout


def test_arguments_are_those_of_the_command() -> None:
    command = python_command("llmtrain.units:format_bytes", "a b", "--c")
    assert command[-2:] == ["a b", "--c"]
