"""`llmtrain schema`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from llmtrain.cli import completion
from llmtrain.cli.output import Output
from llmtrain.errors import UsageError


def schema(
    output: Output,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="A command, such as device-info, or a file of a run.",
            autocompletion=completion.schema_names,
        ),
    ] = None,
) -> None:
    """Print the JSON Schema of a document; without a name, list the documents.

    The schema of profile files is printed by `llmtrain profiles schema`.
    """
    from llmtrain.documents.published import PUBLISHED, SchemaList, describes, published_schema
    from llmtrain.profile.load import did_you_mean

    if name is None:
        schemas = [{"name": each, "describes": describes(each)} for each in PUBLISHED]
        lines = (f"{row['name']:<24}{row['describes']}" for row in schemas)
        output.answer(SchemaList.of(schemas=schemas), lines)
        return
    if name not in PUBLISHED:
        close = did_you_mean(name, PUBLISHED)
        raise UsageError(
            f"there is no document {name!r}",
            hint=f"llmtrain schema {close}" if close else "llmtrain schema",
        )
    output.result(json.dumps(published_schema(name), indent=2, ensure_ascii=False))
