"""The base of every JSON document: filled from engine values, dumped for `--json`, described by
its JSON Schema."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, model_validator
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import CoreSchema
from typing_extensions import Self

import llmtrain
from llmtrain import SCHEMA_VERSION

T = TypeVar("T")
Number = float | None  # JSON has neither infinity nor NaN: both become null
NOT_FINITE = "null: not a finite number"
Amount = int | float  # an integer stays one
Rounded = Annotated[int, BeforeValidator(round)]


def _text(value: object) -> str:
    """Return text as it is: names of files may have surrogates, which pydantic's `str` refuses."""
    if not isinstance(value, (str, Path)):
        raise ValueError("not a text")
    return str(value)


Text = Annotated[str, PlainValidator(_text, json_schema_input_type=str)]


class Part(BaseModel):
    """An object in a document. Its values may be given as objects with the same attributes."""

    model_config = ConfigDict(from_attributes=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """Describe `Decision[int]` as `Decision` is described."""
        cls.__doc__ = cls.__doc__ or cls.__mro__[1].__doc__

    @classmethod
    def of(cls, *sources: object, **values: object) -> Self:
        """Return the part with the attributes of `sources`, of the first that has each.

        `values` replace or complete them. Raises ValidationError where a value is not as published.
        """
        for source in sources:
            names = cls.model_fields.keys() - values.keys()
            if isinstance(source, Part):
                names &= source.model_fields_set  # a key that is missing there is missing here
            values |= {name: getattr(source, name) for name in names if hasattr(source, name)}
        return cls.model_validate(values)

    def json_values(self) -> dict[str, Any]:
        """Return what JSON holds: keys that were never set are missing, NaN and infinity null."""
        values: dict[str, Any] = _finite(self.model_dump(exclude_unset=True))
        return values


class Reasoned(Part, Generic[T]):
    """A value, and why it was chosen."""

    value: T = Field(description="what was decided")
    reason: Text = Field(description="why, in a few words for people; they may change")


def key(description: str, **schema: Any) -> Any:
    """Return the field of a key that is always present."""
    return Field(description=description, json_schema_extra=schema or None)


def optional(description: str) -> Any:
    """Return the field of a key that may be missing; the description says when."""
    return Field(default=None, description=description)


class Document(Part):
    """The JSON document of a command: exactly one on stdout."""

    schema_version: int = key("incremented by each incompatible change", const=SCHEMA_VERSION)
    llmtrain: Text = key("the version of llmtrain that wrote it")

    @model_validator(mode="before")
    @classmethod
    def _add_versions(cls, values: dict[str, object]) -> dict[str, object]:
        return {
            "schema_version": SCHEMA_VERSION,
            "llmtrain": llmtrain.__version__,
            **values,
        }


class Threshold(Part):
    """A limit that an option set. The exit code is 6 where any is not met."""

    name: Text = key("of the option: `max_bpb`, `fail_over`, `require cuda` …")
    limit: Amount | bool = key(
        "its value, in the option's unit, sizes in bytes; true: it has to be there"
    )
    measured: Amount | bool | None = key(
        "what was found, in the same unit; null: unknown, which meets no limit"
    )
    met: bool = key("whether what was found is within the limit")


def thresholds(options: str) -> Any:
    """Return the field `thresholds` of a document whose command takes these options."""
    return optional(f"the limits that {options} set; missing where none was")


def present(**values: object) -> dict[str, object]:
    """Return the values that are not empty: a key without one is missing from the document."""
    return {name: value for name, value in values.items() if value}


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return value


class _Generator(GenerateJsonSchema):
    """JSON Schema without a title for each key, and without defaults of optional keys."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Return False: the title would repeat the key."""
        return False

    def default_schema(self, schema: Any) -> JsonSchemaValue:
        """Return the schema of the value alone."""
        inner: CoreSchema = schema["schema"]
        return self.generate_inner(inner)


def schema_of(name: str, part: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of what is published as `name`.

    It is open: a key that is added later does not make a document invalid.
    """
    described = part.model_json_schema(schema_generator=_Generator)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:llmtrain:{name}:{SCHEMA_VERSION}",
        **described,
        "title": name,
    }
