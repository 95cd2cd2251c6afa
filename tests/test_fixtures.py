"""Fixtures have types: a reader of a test knows what its arguments are."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checkout import ROOT

TESTS = ROOT / "tests"
UNTYPED_LIBRARIES = {"s3", "browser", "page"}  # clients of boto3 and playwright
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(source: str) -> Iterator[Function]:
    """Yield every function of a module, also of its classes."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, Function):
            yield node


def decorated_with(function: Function, word: str) -> list[str]:
    """Return the decorators that contain a word."""
    return [text for each in function.decorator_list if word in (text := ast.unparse(each))]


def is_untyped(annotation: ast.expr | None) -> bool:
    """Return whether an annotation says nothing of the value, as `Any` and `Iterator[Any]`."""
    return annotation is None or ast.unparse(annotation) in ("Any", "Iterator[Any]")


def untyped(source: str) -> Iterator[str]:
    """Yield each fixture without a type, and each argument of a test or fixture that has none.

    The values of parameters may be of any type.
    """
    for function in functions(source):
        is_fixture = bool(decorated_with(function, "fixture"))
        if is_fixture and function.name not in UNTYPED_LIBRARIES and is_untyped(function.returns):
            yield function.name
        if is_fixture or function.name.startswith("test_"):
            given = " ".join(decorated_with(function, "parametrize"))
            for argument in function.args.args:
                if (
                    is_untyped(argument.annotation)
                    and argument.arg not in {"self", *UNTYPED_LIBRARIES}
                    and argument.arg not in given
                ):
                    yield f"{function.name}({argument.arg})"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("@pytest.fixture\ndef run() -> Any: ...", ["run"]),
        ("@pytest.fixture\ndef run() -> Iterator[Any]: ...", ["run"]),
        ("@pytest.fixture\ndef run(): ...", ["run"]),
        ("@pytest.fixture\ndef run() -> Files: ...", []),
        ("def test_it(run: Any) -> None: ...", ["test_it(run)"]),
        ("@pytest.mark.parametrize('value', [1])\ndef test_it(value: Any) -> None: ...", []),
        ("def helper(run: Any) -> None: ...", []),
    ],
)
def test_what_has_no_type_is_seen(source: str, expected: list[str]) -> None:
    assert list(untyped(source)) == expected


def test_every_fixture_has_a_type() -> None:
    found = {
        str(path.relative_to(TESTS)): names
        for path in sorted(TESTS.rglob("*.py"))
        if (names := list(untyped(path.read_text(encoding="utf-8"))))
    }
    assert found == {}


def test_libraries_without_types_are_used() -> None:
    names = {
        function.name
        for path in TESTS.rglob("*.py")
        for function in functions(Path(path).read_text(encoding="utf-8"))
    }
    assert names >= UNTYPED_LIBRARIES
