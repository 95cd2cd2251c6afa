"""docs/reference/api.md names only what there is: names are imported, functions called."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmtrain import engine
from llmtrain.machine.probe import read_facts
from llmtrain.profile.load import load_profile

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
HEADINGS = re.findall(r"^## `engine\.([\w.]+)\(", PAGE, re.MULTILINE)
MODULES = sorted(set(re.findall(r"`(llmtrain(?:\.\w+)+)`", PAGE)))
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
NAMES = sorted({*HEADINGS, *MODULES, *re.findall(r"`engine\.(\w+(?:\.\w+)+)`", PAGE)})
TESTS = Path(__file__).parents[1]


def resolve(dotted: str) -> object:
    """Return what `a.b.C` is, imported as a reader of the page would."""
    words = dotted.split(".")
    found: object = __import__(words[0])
    for number, word in enumerate(words[1:], start=2):
        if not hasattr(found, word):
            __import__(".".join(words[:number]))
        found = getattr(found, word)
    return found


@pytest.mark.parametrize("name", HEADINGS)
def test_every_function_is_an_attribute_of_the_engine(name: str) -> None:
    found: object = engine
    for word in name.split("."):
        found = getattr(found, word)
    assert callable(found)


@pytest.mark.parametrize("name", MODULES)
def test_every_module_and_class_can_be_imported(name: str) -> None:
    assert resolve(name) is not None


def names_used(source: str) -> Iterator[str]:
    """Yield every name that a program reads, as in `f` and `engine.f`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr


def test_every_function_and_class_is_used_by_a_test() -> None:
    used = {
        name
        for path in TESTS.rglob("test_*.py")
        if path != Path(__file__)
        for name in names_used(path.read_text(encoding="utf-8"))
    }
    last = {name.rpartition(".")[2]: name for name in NAMES}
    unused = [
        name for word, name in last.items() if word not in used and callable(resolve_any(name))
    ]
    assert unused == []


def resolve_any(name: str) -> object:
    """Return what a name of the page is: below llmtrain, or below its engine."""
    return resolve(name if name.startswith("llmtrain.") else f"llmtrain.engine.{name}")


@pytest.mark.parametrize("block", BLOCKS)
def test_every_name_of_an_example_exists(block: str) -> None:
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("llmtrain"):
            assert all(resolve(f"{node.module}.{alias.name}") for alias in node.names)
        is_of_engine = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        if is_of_engine and node.value.id == "engine":
            assert node.attr in dir(engine) or hasattr(engine, node.attr)


def test_the_cpu_is_measured() -> None:
    profile = load_profile(
        "cpu-tiny",
        environment={},
        assignments=["model.num_layers=1", "model.context=64", "train.steps=2"],
    ).profile
    facts = read_facts(tries_gpus=False)
    found = engine.bench.bench_cpu(
        profile.model_copy(
            update={"device": profile.device.model_copy(update={"force_cpu": True})}
        ),
        facts,
        block=False,
        announce=lambda text: None,
    )
    assert found.plan.device.value == "cpu"
    assert found.times.matmul.fp32_s > 0


def test_the_engine_is_imported_without_torch() -> None:
    code = "import llmtrain.engine, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
