"""The limits of a number in a profile, and how they are said."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, get_args

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

_LIMITS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
# Only who exceeds such a limit is interested in it.
_BOUND_OF_REPRESENTATION = 2**31
_EXACT_BELOW = 2.0**63  # a larger limit is shown as 1e+30


def limits_text(details: Mapping[str, Any], limits: Mapping[str, float]) -> str | None:
    """Return `at least 0 and below 1`; None if the `details` of an error are of no limit.

    `limits` are the value's own, of which the error has the one that is not met.
    """
    if not any(name in details for name in _LIMITS):
        return None
    likely = {n: v for n, v in limits.items() if abs(v) < _BOUND_OF_REPRESENTATION}
    known = {**likely, **details}
    return " and ".join(f"{word} {_number(known[n])}" for n, word in _LIMITS.items() if n in known)


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
