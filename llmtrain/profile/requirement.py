"""What a value has to be, in plain English, from pydantic's errors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from llmtrain.profile.schema import LANGUAGE_PATTERN, NAME_PATTERN

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_REQUIREMENTS = {
    "bool_type": "has to be true or false",
    "dict_type": "has to be a section of keys",
    "extra_forbidden": "is not a key here",
    "float_parsing": "has to be a number",
    "int_parsing": "has to be a whole number",
    "finite_number": "has to be a finite number",
    "float_type": "has to be a number",
    "int_from_float": "has to be a whole number",
    "int_parsing_size": "has to be a smaller number",
    "int_type": "has to be a whole number",
    "literal_error": "has to be {expected}",
    "list_type": "has to be a list",
    "missing": "is missing",
    "model_type": "has to be a section of keys",
    "string_pattern_mismatch": "has to match {pattern}",
    "string_too_short": "is empty",
    "string_type": "has to be text",
    "too_short": "has to have at least {min_length} of them",
    "tuple_type": "has to be a list",
}

# Instead of a regular expression.
_PATTERNS = {
    NAME_PATTERN: "has to be at most 64 letters, digits, points, '-' and '_', "
    "the first a letter or digit",
    LANGUAGE_PATTERN: "has to be two or three small letters, as in en",
}


_LIMITS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
# Only who exceeds such a limit is interested in it.
_BOUND_OF_REPRESENTATION = 2**31
_EXACT_BELOW = 2.0**63  # a larger limit is shown as 1e+30


def requirement(error: ErrorDetails, limits: Mapping[str, float] | None = None) -> str:
    """Return the requirement that a pydantic error reports, with the value's other `limits`."""
    details = error.get("ctx", {})
    if any(name in details for name in _LIMITS):
        known_limits = {
            n: v for n, v in (limits or {}).items() if abs(v) < _BOUND_OF_REPRESENTATION
        }
        all_limits = {**known_limits, **details}
        shown = [
            f"{word} {_number(all_limits[n])}" for n, word in _LIMITS.items() if n in all_limits
        ]
        return f"has to be {' and '.join(shown)}"
    known = _REQUIREMENTS.get(error["type"])
    if known is None:
        return error["msg"].removeprefix("Value error, ")
    if details.get("pattern") in _PATTERNS:
        return _PATTERNS[details["pattern"]]
    return known.format(**details)


def limits_of(model: type[BaseModel], place: Sequence[str]) -> dict[str, float]:
    """Return the limits of the number at `place` in a model, by pydantic's names: gt, ge, lt, le.

    None are known of what is no field, or within a list.
    """
    *sections, name = place or ("",)
    for section in sections:
        field = model.model_fields.get(section)
        kind = None if field is None else field.annotation
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            return {}
        model = kind
    found = model.model_fields.get(name)
    return {} if found is None else dict(_limits([*found.metadata, found.annotation]))


def _limits(parts: Iterable[Any]) -> Iterator[tuple[str, float]]:
    """Yield the limits in the metadata of a type, and in that of the types it is made of."""
    for part in parts:
        if isinstance(part, FieldInfo):
            yield from _limits(part.metadata)
        elif isinstance(part, (Gt, Ge, Lt, Le)):
            name = type(part).__name__.lower()
            yield name, getattr(part, name)
        else:
            yield from _limits(get_args(part))


def _number(limit: float) -> str:
    is_whole = isinstance(limit, float) and limit.is_integer() and abs(limit) < _EXACT_BELOW
    return str(int(limit)) if is_whole or isinstance(limit, int) else f"{limit:g}"
