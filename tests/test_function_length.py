"""No function is too long to read at once."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import llmtrain

PACKAGE = Path(llmtrain.__file__).parent
MOST_LINES = 40  # of a body: without signature, decorators and docstring


def long_functions(tree: ast.Module) -> Iterator[str]:
    """Yield every function whose body is longer than the limit; functions inside count too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[ast.get_docstring(node, clean=False) is not None :]
            lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
            if lines > MOST_LINES:
                yield f"{node.name}: {lines} lines"


def test_no_body_is_longer_than_the_limit() -> None:
    found = {
        str(path.relative_to(PACKAGE)): long
        for path in sorted(PACKAGE.rglob("*.py"))
        if (long := list(long_functions(ast.parse(path.read_text(encoding="utf-8")))))
    }
    assert found == {}


def test_what_counts_is_the_body() -> None:
    lines = "\n".join("    pass" for _ in range(MOST_LINES))
    head = 'def f(\n    a: int,\n) -> None:\n    """Do.\n\n    More.\n    """\n'
    assert list(long_functions(ast.parse(head + lines))) == []
    assert list(long_functions(ast.parse(f"{head}{lines}\n    pass"))) == ["f: 41 lines"]
