"""What documents are described with. Only described: nothing that is printed passes through here.

A test compares every document with its description, both ways.
"""

from __future__ import annotations

from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, Field
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import CoreSchema

from llmtrain import SCHEMA_VERSION

T = TypeVar("T")
# What JSON has no infinity and no NaN for.
Number = float | None
NOT_FINITE = "null: not a finite number"


class Part(BaseModel):
    """An object in a document."""

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """`Decision[int]` is described as `Decision` is."""
        cls.__doc__ = cls.__doc__ or cls.__mro__[1].__doc__


class Reasoned(Part, Generic[T]):
    """A value, and why it is that."""

    value: T = Field(description="what was decided")
    reason: str = Field(description="why, in a few words for people; they may change")


class Document(Part):
    """What `--json` prints: exactly one on stdout."""

    schema_version: Literal[2] = Field(description="raised by every change that is no addition")
    llmtrain: str = Field(description="the version of llmtrain that wrote it")


class Threshold(Part):
    """A limit that an option set. The exit code is 6 where any is not met."""

    name: str = Field(description="of the option: `max_bpb`, `fail_over`, `require cuda` …")
    limit: float | bool = Field(
        description="what it sets, in the option's unit, sizes in bytes; true: it has to be there"
    )
    measured: Number | bool = Field(
        description="what was found, in the same unit; null: not known, which meets no limit"
    )
    met: bool = Field(description="whether what was found is within the limit")


def key(description: str) -> Any:
    """A key that is always there."""
    return Field(description=description)


def optional(description: str) -> Any:
    """A key that may be missing; the description says when."""
    return Field(default=None, description=description)


def thresholds(options: str) -> Any:
    """The key `thresholds` of a document whose command takes these options."""
    return optional(f"the limits that {options} set; missing where none was")


class _Generator(GenerateJsonSchema):
    """Without the noise: no title a key, no default of what may be missing."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Never: the title would be the key again."""
        return False

    def default_schema(self, schema: Any) -> JsonSchemaValue:
        """The schema of the value alone."""
        inner: CoreSchema = schema["schema"]
        return self.generate_inner(inner)


def schema_of(name: str, part: type[BaseModel]) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of what is published as `name`.

    It is open: a key that is added later does not make a document invalid.
    """
    described = part.model_json_schema(schema_generator=_Generator)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:llmtrain:{name}:{SCHEMA_VERSION}",
        **described,
        "title": name,
    }
