"""Rows of preferences: a prompt, the answer that was chosen, and the one that was rejected.

    {"prompt": "Hi", "chosen": "Hello", "rejected": "What?"}
    {"chosen": [{"role": "user", "content": "Hi"}, …], "rejected": [{"role": "user", …}, …]}

Each of the three is a string or messages; answers may repeat the prompt, and have to where there is
none beside them. A document of the corpus is such a pair as JSON, with the prompt apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llmtrain.data.chat.rows import (
    checked_messages,
    refuse,
    require_no_tools,
    require_turns,
    row_json,
    turn,
)
from llmtrain.errors import DataError
from llmtrain.untrusted import parse_json

_FORM = (
    'a row is {"prompt": "…", "chosen": "…", "rejected": "…"}, each a string or a list of messages'
)


@dataclass(frozen=True, slots=True)
class Preference:
    """Messages of a prompt, and of two answers to it."""

    prompt: list[dict[str, Any]]
    chosen: list[dict[str, Any]]
    rejected: list[dict[str, Any]]


def row_kind(row: object) -> Literal["chat", "preferences"]:
    """Return what a row is by its fields."""
    if not isinstance(row, Mapping):
        return "chat"
    given = {name for name in ("chosen", "rejected", "messages") if row.get(name) is not None}
    return "preferences" if given and "messages" not in given else "chat"


def preference_text(row: object, place: str) -> str:
    """Return the preference of a row as JSON. Raises DataError, naming the place."""
    if not isinstance(row, Mapping):
        raise DataError(f"{place} is no row with a preference", hint=_FORM)
    require_no_tools(row, place)
    missing = [name for name in ("chosen", "rejected") if row.get(name) is None]
    if missing:
        there = ", ".join(map(repr, list(row)[:20])) or "no fields"
        raise DataError(
            f"{place} has no {missing[0]!r}, and all rows of a run are of one kind; it has {there}",
            hint=_FORM,
        )
    chosen, rejected = (
        checked_messages(turn(row[name], "assistant"), f"{place}: {name}")
        for name in ("chosen", "rejected")
    )
    prompt = _prompt(row, chosen, rejected, place)
    chosen, rejected = (_without_prompt(each, prompt) for each in (chosen, rejected))
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        where = f"{place}: {name}"
        if not answer:
            refuse(where, "there is no answer after the prompt")
        require_turns([*prompt, *answer], where)
        if answer[0]["role"] != "assistant" or answer[-1]["role"] != "assistant":
            refuse(where, "the answer does not begin and end with the assistant's message")
    if chosen == rejected:
        refuse(place, "the chosen and the rejected answer are equal, so neither is preferred")
    pair = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    return row_json(pair, place)


def read_preference(text: str) -> Preference:
    """Return the preference of a document's text."""
    return Preference(**parse_json(text))


def _prompt(
    row: Mapping[str, Any],
    chosen: Sequence[Mapping[str, Any]],
    rejected: Sequence[Mapping[str, Any]],
    place: str,
) -> list[dict[str, Any]]:
    """Return the row's prompt, or what both answers begin with."""
    if row.get("prompt") is not None:
        return checked_messages(turn(row["prompt"], "user"), f"{place}: prompt")
    shared = list[dict[str, Any]]()
    for one, other in zip(chosen[:-1], rejected[:-1], strict=False):
        if one != other:
            break
        shared.append(dict(one))
    if not shared:
        raise DataError(
            f"{place} has no 'prompt', and its two answers do not begin with the same messages",
            hint=_FORM,
        )
    while shared and shared[-1]["role"] == "assistant":
        shared.pop()  # an answer that begins alike is still the answer
    return shared


def _without_prompt(
    answer: list[dict[str, Any]], prompt: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    repeats = len(answer) > len(prompt) and answer[: len(prompt)] == list(prompt)
    return answer[len(prompt) :] if repeats else answer
