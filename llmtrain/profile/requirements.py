"""What a value has to be, in plain English: pydantic's errors as errors of this program."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from pydantic_core import ErrorDetails

from llmtrain.errors import UsageError
from llmtrain.profile.limits import limits_of, limits_text
from llmtrain.profile.schema import LANGUAGE_PATTERN, NAME_PATTERN, Profile
from llmtrain.profile.setting import Setting, as_written


def usage_error(errors: Sequence[ErrorDetails], merged: Mapping[str, Setting]) -> UsageError:
    """Return pydantic's first error as a UsageError with the origin of the value."""
    error = errors[0]
    words = _setting_path(error["loc"], merged)
    path = ".".join(map(str, error["loc"]))
    setting = merged.get(".".join(words))
    limits = limits_of(Profile, words)
    message = requirement(error, limits)
    if setting is not None and not isinstance(setting.value, (list, dict)):
        branches = (e for e in errors if _setting_path(e["loc"], merged) == words)
        message = " or ".join(dict.fromkeys(requirement(e, limits) for e in branches))
        message = message.replace(" or has to be ", " or ")
    if setting is None:
        origins = _origins_within(path, message, merged)
        place = f"{path}: " if path else ""  # or of the whole profile
        return UsageError(place + message + (f" ({', '.join(origins)})" if origins else ""))
    key, origin = ".".join(words), setting.origin
    within = _place(setting.value, error["loc"][len(words) :])
    is_about_a_key = error["type"] in ("missing", "extra_forbidden")
    if error["type"] == "missing":
        within.append(error["loc"][-1])
    if any(isinstance(part, str) for part in within):  # do not show the whole list of mappings
        place = ".".join([key, *map(str, within)])
        found = "" if is_about_a_key else f", not {_shown(error['input'])}"
        return UsageError(f"{place} {message}{found} ({origin})")
    hint = None
    if error["type"] in ("tuple_type", "list_type"):
        written = as_written(key, f"[{json.dumps(setting.value)}]", origin)
        hint = f"a list is in brackets: {written}"
    elif error["type"] == "string_type" and not isinstance(setting.value, (list, dict)):
        hint = "quote a text that YAML reads as something else, as in 'no', '2024' and 'null'"
    found = "" if message.startswith(repr(setting.value)) else f", not {_shown(setting.value)}"
    return UsageError(f"{key}: {message}{found} ({origin})", hint=hint)


def _origins_within(path: str, message: str, merged: Mapping[str, Setting]) -> list[str]:
    """Return where the settings of a section come from: those that the message names, or all.

    With an empty `path`, of the whole profile, only those that are named.
    """
    start = f"{path}." if path else ""
    within = {p.removeprefix(start): s.origin for p, s in merged.items() if p.startswith(start)}
    # of the whole profile by their paths: `name` is also a word
    named = {o for key, o in within.items() if _names(message, key) and (path or "." in key)}
    return sorted(named or (set(within.values()) if path else ()))


def _names(message: str, key: str) -> bool:
    return re.search(rf"(?<![\w.]){re.escape(key)}(?!\w)", message) is not None


_READ_AS = {True: "true", False: "false", None: "null"}
_WRITTEN = {True: "yes, on and true", False: "no, off and false", None: "~, null and nothing"}


def _shown(value: object) -> str:
    """Return a value as YAML writes it; for one that is not written so, with what is read as it."""
    if value is None or isinstance(value, bool):
        return f"{_READ_AS[value]} (YAML reads {_WRITTEN[value]} so)"
    return json.dumps(value) if isinstance(value, (list, dict)) else repr(value)


def _setting_path(place: Sequence[int | str], merged: Mapping[str, Setting]) -> list[str]:
    """Return the part of an error location that names a setting.

    pydantic's locations also have the branches of unions.
    """
    words = [str(part) for part in place]
    while words and ".".join(words) not in merged:
        words.pop()
    return words


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


def requirement(error: ErrorDetails, limits: Mapping[str, float] | None = None) -> str:
    """Return the requirement that a pydantic error reports, with the number's other `limits`."""
    details = error.get("ctx", {})
    text = limits_text(details, limits or {})
    if text is not None:
        return f"has to be {text}"
    known = _REQUIREMENTS.get(error["type"])
    if known is None:
        return error["msg"].removeprefix("Value error, ")
    if details.get("pattern") in _PATTERNS:
        return _PATTERNS[details["pattern"]]
    return known.format(**details)


def _place(value: object, parts: Sequence[int | str]) -> list[int | str]:
    """Return the parts of an error location that index into `value`.

    The other parts name branches of unions.
    """
    place: list[int | str] = []
    for part in parts:
        try:
            value = value[part]  # type: ignore[index]
        except (LookupError, TypeError):
            continue
        place.append(part)
    return place
