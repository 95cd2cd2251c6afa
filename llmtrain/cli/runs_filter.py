"""Conditions and order of `runs list`: --where KEY=VALUE, --sort KEY."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmtrain.errors import UsageError

if TYPE_CHECKING:
    from llmtrain.documents.runs import Run

Values = Mapping[str, Any]  # a run's, by key
_CONDITION = re.compile(r"([A-Za-z][\w.]*)(<=|>=|!=|=|<|>)(.+)", re.DOTALL)
_NUMBERS: dict[str, Callable[[float, float], bool]] = {
    "<": lambda value, limit: value < limit,
    ">": lambda value, limit: value > limit,
    "<=": lambda value, limit: value <= limit,
    ">=": lambda value, limit: value >= limit,
}
_HINT = "llmtrain runs list --where profile=cpu-small --where 'val_bpb<1.5' --sort val_bpb"


@dataclass(frozen=True)
class Condition:
    """A key, an operator and a value."""

    key: str
    operator: str
    value: str

    def is_met(self, values: Values) -> bool:
        """Return whether a run meets the condition. Raises UsageError for what is no number."""
        found = values.get(self.key)
        if self.operator in _NUMBERS:
            limit = _number(self.value)
            if limit is None:
                raise UsageError(f"--where {self}: {self.value} is not a number", hint=_HINT)
            if not isinstance(found, (int, float)):
                return False
            return _NUMBERS[self.operator](found, limit)
        several = found if isinstance(found, list) else [found]
        is_equal = any(_is_equal(each, self.value) for each in several)
        return is_equal == (self.operator == "=")

    def __str__(self) -> str:
        return f"{self.key}{self.operator}{self.value}"


def parse_conditions(texts: Iterable[str]) -> list[Condition]:
    """Return the conditions. Raises UsageError."""
    found = []
    for text in texts:
        match = _CONDITION.fullmatch(text)
        if match is None:
            raise UsageError(f"--where {text}: not KEY=VALUE, KEY<NUMBER or the like", hint=_HINT)
        found.append(Condition(*match.groups()))
    return found


def run_values(run: Run, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what can be asked of a run: the keys of `runs list --json`, and the profile's."""
    from llmtrain.profile.load import flat_values

    return {**dict(flat_values(record["profile"])), **run.json_values()}


def chosen_runs(
    rows: Sequence[tuple[Run, Values]],
    conditions: Sequence[Condition],
    sort: str | None,
    *,
    reverse: bool,
) -> list[Run]:
    """Return the runs that meet all conditions, in order; runs without the key come last.

    Raises UsageError for a key that no run has.
    """
    keys = {key for _, values in rows for key in values}
    for key in [condition.key for condition in conditions] + ([sort] if sort else []):
        if rows and key not in keys:
            _refuse(key, keys)
    chosen = [row for row in rows if all(condition.is_met(row[1]) for condition in conditions)]
    if sort is None:
        return [run for run, _ in (reversed(chosen) if reverse else chosen)]
    known = [row for row in chosen if row[1].get(sort) is not None]
    known.sort(key=lambda row: _order(row[1][sort]), reverse=reverse)
    return [run for run, _ in known] + [run for run, v in chosen if v.get(sort) is None]


def _refuse(key: str, keys: Iterable[str]) -> None:
    import difflib

    close = difflib.get_close_matches(key, sorted(keys), n=1)
    hint = f"did you mean {close[0]}?" if close else "llmtrain runs list --json shows the keys"
    raise UsageError(f"no run has a key {key}", hint=hint)


def _order(value: Any) -> tuple[bool, float, str]:
    """Return a key that orders numbers by size, and before texts."""
    if isinstance(value, (int, float)):
        return False, float(value), ""
    return True, 0.0, str(value)


def _is_equal(found: object, value: str) -> bool:
    number = _number(value)
    if isinstance(found, bool):
        return value.lower() == str(found).lower()
    if number is not None and isinstance(found, (int, float)):
        return found == number
    return found is not None and str(found) == value


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
