"""Programs of tests/: each is described, and code that they run as text imports what exists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.checkout import ROOT

TESTS = ROOT / "tests"
IMPORT = re.compile(r"\bfrom (llmtrain[\w.]*) import ([\w, ]+)")


def imports_in_strings(text: str) -> Iterator[tuple[str, str]]:
    """Yield module and name of each import of llmtrain in a string of Python code."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            for module, names in IMPORT.findall(node.value):
                yield from ((module, name.split()[0]) for name in names.split(",") if name.strip())


def defined_names(module: str) -> set[str]:
    """Return the names at the top of a module, and the modules of a package."""
    path = ROOT / module.replace(".", "/")
    names = {child.stem for child in path.glob("*")} if path.is_dir() else set()
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    for node in ast.parse(source.read_text(encoding="utf-8")).body if source.exists() else []:
        if isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {
                inner.id
                for target in targets
                for inner in ast.walk(target)
                if isinstance(inner, ast.Name)
            }
    return names


def test_code_that_is_run_as_text_imports_what_exists() -> None:
    found = [
        f"{path.relative_to(ROOT)}: from {module} import {name}"
        for path in sorted(TESTS.rglob("*.py"))
        if path.name not in {"test_layers.py", "test_programs.py"}  # examples of imports
        for module, name in imports_in_strings(path.read_text(encoding="utf-8"))
        if name not in defined_names(module)
    ]
    assert found == []


def test_an_import_of_a_name_that_was_renamed_is_found() -> None:
    code = '_CHILD = "from llmtrain.units import parse_bytes, parse_megabytes"'
    wrong = [name for module, name in imports_in_strings(code) if name not in defined_names(module)]
    assert wrong == ["parse_megabytes"]


@pytest.mark.parametrize("folder", ["benchmarks", "faults"])
def test_each_program_is_described_once(folder: str) -> None:
    page = (TESTS / folder / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    programs = {
        path.stem
        for path in (TESTS / folder).glob("*.py")
        if "add_argument" in (text := path.read_text(encoding="utf-8")) and "__main__" in text
    }
    assert len(rows) == len(set(rows))
    assert programs <= set(rows)
