"""The shell scripts of the documentation do what they say."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"
# Small enough for a test; the environment is a lower layer than what the scripts say.
SMALL = {
    "STEPS": "3",
    "LLMTRAIN_MODEL__CONTEXT": "64",
    "LLMTRAIN_MODEL__NUM_LAYERS": "1",
    "LLMTRAIN_TRAIN__TOKENS_PER_STEP": "512",
    "LLMTRAIN_EVAL__TOKENS": "512",
    "LLMTRAIN_EVAL__SAMPLE_TOKENS": "4",
}

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="the examples are for bash")


def run_example(name: str, directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", str(EXAMPLES / name), *arguments],
        cwd=directory,
        env={**os.environ, **SMALL, "PATH": path},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def corpus(directory: Path) -> Path:
    text = directory / "text"
    text.mkdir()
    library = Path(os.__file__).parent
    for name in ("argparse", "ast", "inspect", "tarfile", "typing", "pickle", "pydoc", "turtle"):
        shutil.copy(library / f"{name}.py", text / f"{name}.py")
    return text


def test_every_example_is_tested() -> None:
    tested = {"quickstart.sh", "own_text.sh", "preemptible.sh", "ci_check.sh"}
    assert {path.name for path in EXAMPLES.iterdir()} == tested


@pytest.mark.parametrize(
    ("name", "result"),
    [
        ("quickstart.sh", "def"),
        ("preemptible.sh", ""),
        ("ci_check.sh", "bits/byte, peak"),
    ],
)
def test_an_example_runs(name: str, result: str, tmp_path: Path) -> None:
    done = run_example(name, tmp_path)
    assert done.returncode == 0, done.stderr
    assert result in done.stdout
    assert list(tmp_path.glob("runs/*/checkpoints/step-00000003/model.safetensors"))


def test_the_example_for_own_text_runs(tmp_path: Path) -> None:
    done = run_example("own_text.sh", tmp_path, str(corpus(tmp_path)))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "my-tokenizer" / "tokenizer.json").is_file()
    assert (tmp_path / "runs/own-text/checkpoints/step-00000003").is_dir()


def test_the_readme_says_how_to_test_and_ci_does_it() -> None:
    root = EXAMPLES.parent.parent
    command = 'pip install --quiet --constraint constraints.txt --editable ".[test]"'
    assert command in (root / "README.md").read_text(encoding="utf-8")
    assert "README.md" in (root / ".ci" / "run").read_text(encoding="utf-8")
