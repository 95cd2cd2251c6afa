"""The types of a profile's values: durations and counts as text or numbers, and their limits."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated

from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
)
from pydantic.json_schema import WithJsonSchema

from llmtrain.units import parse_count, parse_duration_s


def _duration_s(value: object) -> object:
    if isinstance(value, str):
        return parse_duration_s(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0:
        raise ValueError(f"{value} has no unit; write {value:g}s or {value:g}m")
    return value


def _count(value: object) -> object:
    return parse_count(value) if isinstance(value, str) else value


def _seconds_text(seconds: float) -> str:
    return f"{Decimal(repr(seconds)).normalize():f}s"  # exact, and never with an exponent


# For words with `off` among them, which YAML reads as false where it is not quoted.
WITH_OFF = BeforeValidator(lambda value: "off" if value is False else value)


Duration = Annotated[
    float,
    BeforeValidator(_duration_s),
    PlainSerializer(_seconds_text, return_type=str),
    WithJsonSchema({"type": "string", "description": "90s, 30m, 2h or 1h30m"}),
]


Count = Annotated[
    int,
    BeforeValidator(_count),
    WithJsonSchema({"anyOf": [{"type": "integer"}, {"type": "string"}], "description": "50M"}),
]


PositiveInt = Annotated[int, Field(ge=1, lt=2**31)]


PositiveCount = Annotated[Count, Field(ge=1, lt=2**63)]


# The bound keeps values and products with other settings within the range of float32.
PositiveFloat = Annotated[float, Field(gt=0, lt=1e30)]


MOST_THREADS = 4096  # a larger number is surely a mistake


Threads = Annotated[int, Field(ge=1, le=MOST_THREADS)]
