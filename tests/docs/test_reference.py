"""The reference pages list every command, exit code and profile key, and their programs run."""

from __future__ import annotations

import importlib
import re
import runpy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from llmtrain import errors
from llmtrain.cli.app import app
from llmtrain.profile.load import load_profile
from llmtrain.profile.schema import Profile
from tests.small import ENVIRONMENT

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


def page(name: str) -> str:
    return (REFERENCE / name).read_text(encoding="utf-8")


def commands(command: Any, name: str) -> Iterator[str]:
    """The full names of the commands under `command`, a click group or command."""
    if not hasattr(command, "commands"):
        yield name
        return
    for word, inner in command.commands.items():
        yield from commands(inner, f"{name} {word}")


def test_every_command_is_listed() -> None:
    listed = re.findall(
        r"^\| `(llmtrain [a-z -]+?)(?: \[?[A-Z]+\]?)?` \|", page("commands.md"), re.M
    )
    assert sorted(listed) == sorted(commands(get_command(app), "llmtrain"))


def test_every_exit_code_is_listed() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    codes = {kind.exit_code for kind in kinds if issubclass(kind, errors.LlmtrainError)}
    listed = [int(code) for code in re.findall(r"^\| (\d+) \|", page("commands.md"), re.M)]
    assert listed == sorted(codes | {0})


def defaults(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from defaults(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def test_every_key_of_a_profile_is_listed_with_its_default() -> None:
    rows = re.findall(r"^\| `([a-z0-9_.]+)` \| (.*?) \|", page("profiles.md"), re.M)
    listed = [
        (key, float(default) if default.startswith("1e") else yaml.safe_load(default))
        for key, default in rows
    ]
    assert listed == list(defaults(Profile().model_dump(mode="json")))


def test_the_profile_of_the_page_is_valid(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(page("profiles.md").partition("```yaml\n")[2].partition("```")[0])
    assert load_profile(str(path), environment={}).profile.name == "my-model"


def blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page("api.md"), re.DOTALL | re.MULTILINE)


@pytest.fixture
def small_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory with notes to train on, where every profile trains in a second."""
    monkeypatch.chdir(tmp_path)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    for path in (REFERENCE.parent / "guides").glob("*.md"):
        (tmp_path / "notes").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "notes")
    return tmp_path


def test_the_programs_of_the_api_page_run(small_place: Path) -> None:
    training, bench, transformers = blocks()
    program = small_place / "program.py"
    program.write_text(
        training.replace('"train.steps": 200', '"train.steps": 2') + bench + transformers,
        encoding="utf-8",
    )
    names = runpy.run_path(str(program))
    assert (names["result"].steps, names["result"].stopped) == (2, "done")
    assert names["bench"].plan.precision.value == "fp32"
    assert names["model"].num_parameters() > 0


def test_every_function_of_the_api_page_exists() -> None:
    named = re.findall(r"^## `(?:llmtrain\.)?engine\.([a-z_.]+)\(", page("api.md"), re.M)
    assert named == ["plan", "train", "evaluate", "generate", "bench.bench_cpu"]
    for name in named:
        module, _, function = f"llmtrain.engine.{name}".rpartition(".")
        assert callable(getattr(importlib.import_module(module), function))
