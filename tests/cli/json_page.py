"""The part of docs/reference/json.md that is written from the schemas: every key in a table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmtrain.documents.published import PUBLISHED, published_schema

Schema = dict[str, Any]


def page() -> str:
    """Tables of all documents, of the files of a run, and of what both are made of."""
    schemas = {name: published_schema(name) for name in PUBLISHED}
    parts = {part(title): shape for each in schemas.values() for title, shape in defined(each)}
    files = {name: schema for name, schema in schemas.items() if "." in name}
    documents = {name: schema for name, schema in schemas.items() if name not in files}
    lines = ["## Documents", *sections(documents), "## Files of a run", *sections(files)]
    lines += ["## Parts", "", "What several of these hold.", ""]
    lines += [line for name in sorted(parts) for line in section(name, parts[name])]
    return "\n".join(lines).rstrip() + "\n"


def defined(schema: Schema) -> Iterator[tuple[str, Schema]]:
    """The parts that a schema comes with, each with the schema that its references mean."""
    for inner in schema.get("$defs", {}).values():
        yield inner["title"], {**inner, "$defs": schema["$defs"]}


def part(title: str) -> str:
    """`Decision` of `Decision[int]`."""
    return title.partition("[")[0]


def sections(schemas: dict[str, Schema]) -> Iterator[str]:
    yield ""
    for name, schema in schemas.items():
        yield from section(name, schema)


def section(name: str, schema: Schema) -> Iterator[str]:
    yield from (f"### {name}", "", " ".join(schema["description"].split()), "")
    if "properties" not in schema:
        yield from ("One of: " + kind(schema, schema) + ".", "")
        return
    yield from ("| key | type | what it is |", "| --- | --- | --- |")
    is_part_of_any_type = "[" in schema["title"]
    for key, value in schema["properties"].items():
        shown = "any" if is_part_of_any_type and key == "value" else kind(value, schema)
        yield f"| `{key}` | {shown} | {cell(value['description'])} |"
    yield ""


def kind(value: Schema, schema: Schema) -> str:
    """The type of a value in words, with a link to the part that it is."""
    if "$ref" in value:
        title = schema["$defs"][value["$ref"].rpartition("/")[2]]["title"]
        link = f"[{part(title)}](#{part(title).lower()})"
        if "[" not in title:
            return link
        inner = schema["$defs"][value["$ref"].rpartition("/")[2]]["properties"]["value"]
        return f"{link} of {kind(inner, schema)}"
    if "anyOf" in value:
        return " or ".join(kind(each, schema) for each in value["anyOf"])
    if "enum" in value:
        return ", ".join(f"`{each}`" for each in value["enum"])
    if "const" in value:
        return f"`{str(value['const']).lower()}`"
    if value.get("type") == "array":
        return f"list of {kind(value['items'], schema)}"
    if value.get("type") == "object":
        inner = value.get("additionalProperties", True)
        return f"map to {'any' if inner is True else kind(inner, schema)}"
    return str(value.get("type", "any"))


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
