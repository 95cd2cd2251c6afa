"""Rules for the keys of another tool's configuration, and how a table of them is applied."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from llmtrain.errors import UsageError
from llmtrain.profile.schema import TrackerName

Source = Literal["llm-trainer", "nanogpt", "huggingface"]
# mapped: settings of the profile; replaced: something else does it; dropped: nothing does.
Outcome = Literal["mapped", "replaced", "dropped"]
Old = Mapping[str, Any]  # dotted keys of the old configuration


class Unevaluated(str):
    """The source text of an expression that is not a plain value, as `str(time.time())`."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Became:
    """The outcome of one key: settings of the profile, and a note for the user."""

    outcome: Outcome
    settings: Mapping[str, Any] = field(default_factory=dict)  # dotted keys of the profile
    note: str = ""


Rule = Callable[[Any, Old], Became]


@dataclass(frozen=True, slots=True)
class Entry:
    """One key of the old configuration, and what became of it."""

    name: str
    value: Any
    given: bool  # False: it is the other tool's default, which the profile has to say
    outcome: Outcome
    settings: Mapping[str, Any]
    note: str


@dataclass(frozen=True, slots=True)
class Conversion:
    """The settings of a profile, and an entry for every key that they were made from."""

    source: Source
    settings: Mapping[str, Any]
    entries: tuple[Entry, ...]


def mapped(settings: Mapping[str, Any], note: str = "") -> Became:
    """Return that settings of the profile say the same."""
    return Became("mapped", settings, note)


def replaced(note: str) -> Became:
    """Return that something else does it, as `note` says."""
    return Became("replaced", note=note)


def dropped(note: str) -> Became:
    """Return that nothing does it, and why."""
    return Became("dropped", note=note)


def to(path: str, change: Callable[[Any], Any] = lambda value: value, note: str = "") -> Rule:
    """Return the rule for a key that has its own setting; one that is null sets nothing."""

    def rule(value: Any, _: Old) -> Became:
        return dropped("not set") if value is None else mapped({path: change(value)}, note)

    return rule


def instead(note: str) -> Rule:
    """Return the rule for a key that something else replaces, whatever its value."""
    return lambda _value, _old: replaced(note)


def never(note: str) -> Rule:
    """Return the rule for a key that nothing replaces, whatever its value."""
    return lambda _value, _old: dropped(note)


def unless_off(note: str, off: object = (None, False, 0, 0.0, "", "no", "none")) -> Rule:
    """Return the rule for a key that changes something only where it is not off."""
    values = off if isinstance(off, tuple) else (off,)

    def rule(value: Any, _: Old) -> Became:
        return dropped("off, as here") if value in values or value == [] else dropped(note)

    return rule


def convert(given: Old, rules: Mapping[str, Rule], defaults: Old, source: Source) -> Conversion:
    """Return the settings for `given`, and what became of each of its keys.

    `defaults` are the values that the other tool uses for keys that are not given, as far as they
    change what is trained. Raises UsageError for a value that cannot be read.
    """
    old = {**given, **{key: value for key, value in defaults.items() if key not in given}}
    settings: dict[str, Any] = {}
    by: dict[str, str] = {}
    entries = []
    for key, value in old.items():
        became = _became(key, value, old, rules, source)
        taken = next((path for path in became.settings if path in settings), None)
        if taken is not None and became.settings[taken] != settings[taken]:
            became = replaced(f"{by[taken]} says so already: {taken} is {settings[taken]}")
        settings |= became.settings
        by |= dict.fromkeys(became.settings, key)
        entries.append(
            Entry(key, value, key in given, became.outcome, became.settings, became.note)
        )
    return Conversion(source, settings, tuple(entries))


def _became(key: str, value: Any, old: Old, rules: Mapping[str, Rule], source: Source) -> Became:
    rule = rules.get(key)
    if rule is None:
        return dropped(f"{source} is not known to have this key")
    if isinstance(value, Unevaluated):
        return dropped("an expression, which is not run; set it by hand")
    try:
        return rule(value, old)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise UsageError(
            f"{key} is {str(value)[:80]!r}, which cannot be converted: {error}"
        ) from None


def gated_width(width: Any) -> int:
    """Return the inner width of SwiGLU with as many weights as an MLP of two matrices of `width`.

    SwiGLU has three matrices (Shazeer 2020): two thirds of the width, here a multiple of eight.
    """
    return max(8, round(int(width) * 2 / 3 / 8) * 8)


def trackers(value: Any, _: Old) -> Became:
    """Map the trackers that a run reports to; llmtrain's names are the same."""
    named = list(value) if isinstance(value, (list, tuple)) else [value]
    known = [name for name in named if name in get_args(TrackerName)]
    others = [str(name) for name in named if name not in (*known, "none", "all", None)]
    note = f"not to {', '.join(others)}; metrics.jsonl has all of it" if others else ""
    if known:
        return mapped({"log_to": known}, note)
    return replaced(note or "metrics.jsonl in the run directory, llmtrain runs show")
