"""A program that uses llmtrain is checked by mypy with llmtrain's own annotations (`py.typed`)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import llmtrain

pytest.importorskip("mypy")
# `reveal_type` prints what mypy knows: without `py.typed` all of it would be Any.
PROGRAM = """\
from llmtrain.engine.api import evaluate, generate, plan, train

result = train("cpu-tiny", data=["notes"], settings={"train.steps": 2})
reveal_type(result.val_bpb)
reveal_type(evaluate(result.run).bits_per_byte)
reveal_type(generate(result.run, "def"))
reveal_type(plan("cpu-tiny").limit_bytes)
train(profile=3)
result.no_such
"""
SHOWN = (
    'Revealed type is "float | None"',
    'Revealed type is "float"',
    'Revealed type is "typing.Iterator[str]"',
    'Revealed type is "int"',
    'Argument "profile" to "train" has incompatible type "int"; expected "str | None"',
    '"TrainResult" has no attribute "no_such"',
)


@pytest.mark.slow
def test_a_program_sees_the_annotations(tmp_path: Path) -> None:
    assert (Path(llmtrain.__file__).parent / "py.typed").is_file()
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    options = ["--strict", "--no-incremental", "--follow-imports", "silent", "--no-pretty"]
    command = [sys.executable, "-m", "mypy", *options, "--config-file", "", "program.py"]
    package = str(Path(llmtrain.__file__).parent.parent)
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={"PATH": "", "MYPYPATH": "", "PYTHONPATH": package, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("program.py")]
    assert [shown for shown in SHOWN if not any(shown in line for line in lines)] == [], lines
    assert len(lines) == len(SHOWN), lines
