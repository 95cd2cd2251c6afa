"""Pages of the documentation site that are written from the code: reference, and examples.

Each is Markdown. What they say is what the program itself says: its help, its schemas, its
signatures and docstrings.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from typer.core import TyperGroup
from typer.testing import CliRunner

from llmtrain.cli.app import app
from llmtrain.documents.published import PUBLISHED, describes, published_schema
from llmtrain.profile.schema import Profile
from tests.cli.public_surface import FUNCTIONS, VALUES, signature
from tests.cli.test_help import COMMANDS

_WIDTH = {"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}


def generated_pages(examples: Path) -> dict[str, str]:
    """Return the text of each generated file by its path in the site."""
    pages = {
        "reference/cli.md": "".join(_command_line_page()),
        "reference/schemas.md": "".join(_schemas_page()),
        "reference/python.md": "".join(_python_page()),
        "examples.md": "".join(_examples_page(examples)),
    }
    schemas = {name: published_schema(name) for name in PUBLISHED}
    schemas["profile"] = Profile.model_json_schema(mode="validation")
    for name, schema in schemas.items():
        text = json.dumps(schema, indent=2, ensure_ascii=False)
        pages[f"reference/schemas/{name}.json"] = text + "\n"
    return pages


def _command_line_page() -> Iterator[str]:
    yield (
        "# Every command's help\n\nWhat `llmtrain COMMAND --help` prints. "
        "[Commands and exit codes](commands.md) has all of them in a table.\n"
    )
    runner = CliRunner(env=_WIDTH)
    for path, command in COMMANDS.items():
        if isinstance(command, TyperGroup) and path:
            continue
        answer = runner.invoke(app, [*path.split(), "--help"], prog_name="llmtrain")
        if answer.exit_code:
            raise SystemExit(f"llmtrain {path} --help: {answer.output}")
        yield f"\n## llmtrain {path}".rstrip() + f"\n\n```text\n{answer.output.rstrip()}\n```\n"


def _schemas_page() -> Iterator[str]:
    yield (
        "# JSON Schemas\n\nOf every document and line, as `llmtrain schema NAME` prints them, and "
        "of profile files (`llmtrain profiles schema`). [JSON](json.md) has their keys in tables."
        "\n\n"
        "| schema | describes |\n| --- | --- |\n"
    )
    yield "| [profile](schemas/profile.json) | a profile: a YAML file of settings |\n"
    for name in PUBLISHED:
        yield f"| [{name}](schemas/{name}.json) | {_cell(describes(name))} |\n"


def _python_page() -> Iterator[str]:
    yield (
        "# Python: signatures\n\nThe public functions of `llmtrain.engine`, and the attributes of "
        "what they return and report. [Using llmtrain from Python](api.md) says how to use them.\n"
    )
    for name in FUNCTIONS:
        module, _, function = f"llmtrain.engine.{name}".rpartition(".")
        of = getattr(importlib.import_module(module), function)
        yield f"\n## engine.{name}\n\n```python\n{wrapped(name, signature(of))}\n```\n"
        yield f"\n{inspect.getdoc(of) or ''}\n"
    for kind in VALUES:
        yield f"\n## {kind.__name__}\n\n`{kind.__module__}.{kind.__name__}`: "
        yield inspect.getdoc(kind) or ""
        yield "\n\n| attribute | type | |\n| --- | --- | --- |\n"
        remarks = _remarks(kind)
        for field in fields(kind):
            cells = (f"`{field.name}`", f"`{field.type}`", remarks.get(field.name, ""))
            yield f"| {' | '.join(map(_cell, cells))} |\n"


def wrapped(name: str, text: str) -> str:
    """Return a signature with a line for each parameter."""
    inside, _, returned = text[1:].rpartition(") ->")
    parts = re.split(r", (?=\*|\w+:)", inside)
    lines = "".join(f"    {part},\n" for part in parts)
    return f"engine.{name}(\n{lines}) ->{returned}"


def _remarks(kind: type[Any]) -> dict[str, str]:
    """Return the comments at the ends of the lines that declare the attributes."""
    found = re.findall(r"^    (\w+): [^#\n]+?  # (.+)$", inspect.getsource(kind), re.MULTILINE)
    return dict(found)


def _examples_page(examples: Path) -> Iterator[str]:
    yield "# Examples\n\nShell scripts, each run by a test.\n"
    for path in sorted(examples.glob("*.sh")):
        text = path.read_text(encoding="utf-8").rstrip()
        yield f"\n## {path.name}\n\n```bash\n{text}\n```\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
