"""Rows of conversations, checked before anything is trained on them.

A row has `messages`, or a `prompt` and a `completion`, which are strings or messages themselves:

    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    {"prompt": "Hi", "completion": "Hello"}

A system's message may come first. The user and the assistant then take turns, beginning with the
user; results of tools may stand between two turns of the assistant. A document of the corpus is
such a conversation as JSON, always written alike.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from llmtrain.errors import DataError
from llmtrain.units import format_bytes
from llmtrain.untrusted import parse_json

Conversation = Sequence[Mapping[str, Any]]

LONGEST_ROW_BYTES = 1 << 20
COLUMNS = ("messages", "prompt", "completion", "chosen", "rejected")
_CHAT_COLUMNS = COLUMNS[:3]
_HINT = "mend that row, or leave such rows out: --set data.on_error=skip"
_FORM = (
    'a row is {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": '
    '"…"}]} or {"prompt": "…", "completion": "…"}'
)
_ROLES = ("system", "developer", "user", "assistant", "tool")
# Which roles may follow which; the first message follows None.
_FOLLOWING: Mapping[str | None, tuple[str, ...]] = {
    None: ("system", "developer", "user"),
    "system": ("user",),
    "developer": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}


def conversation_text(row: object, place: str) -> str:
    """Return the conversation of a row as JSON. Raises DataError, naming the place."""
    messages = _messages(row, place)
    require_turns(messages, place)
    return row_json(messages, place)


def row_json(value: object, place: str) -> str:
    """Return what a row has as JSON, always written alike. Raises DataError, naming the place."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    try:
        parse_json(text)  # as it will be read again
        size_bytes = len(text.encode())
    except ValueError as error:
        raise DataError(
            f"{place}: the conversation is not plain JSON: {error}", hint=_HINT
        ) from None
    if size_bytes > LONGEST_ROW_BYTES:
        refuse(
            place,
            f"the conversation has {format_bytes(size_bytes)}, and "
            f"{format_bytes(LONGEST_ROW_BYTES)} is the most",
        )
    return text


def read_conversation(text: str) -> list[dict[str, Any]]:
    """Return the messages of a document's text."""
    messages: list[dict[str, Any]] = parse_json(text)
    return messages


def _messages(row: object, place: str) -> list[dict[str, Any]]:
    if not isinstance(row, Mapping):
        raise DataError(f"{place} is no row with a conversation", hint=_FORM)
    given = {name: row[name] for name in _CHAT_COLUMNS if row.get(name) is not None}
    require_no_tools(row, place)
    if "messages" in given:
        return checked_messages(_list(given, place), place)
    if row.get("chosen") is not None and row.get("rejected") is not None:
        refuse(
            place,
            "the row has 'chosen' and 'rejected', a preference, among conversations: all rows of a "
            "run are of one kind",
        )
    if given.keys() != {"prompt", "completion"}:
        there = ", ".join(map(repr, list(row)[:20])) or "no fields"
        raise DataError(
            f"{place} has no 'messages', and not both 'prompt' and 'completion'; it has {there}",
            hint=_FORM,
        )
    turns = [*turn(given["prompt"], "user"), *turn(given["completion"], "assistant")]
    return checked_messages(turns, place)


def require_no_tools(row: Mapping[str, Any], place: str) -> None:
    """Raise DataError for a row with tools."""
    if row.get("tools"):
        refuse(place, "the row has tools, which are not trained with")


def checked_messages(turns: Sequence[Any], place: str) -> list[dict[str, Any]]:
    """Return messages without keys that have no value. Raises DataError for what is none."""
    return [_message(each, place, at) for at, each in enumerate(turns, start=1)]


def _list(given: Mapping[str, Any], place: str) -> Sequence[Any]:
    messages = given["messages"]
    if not isinstance(messages, list | tuple) or not messages:
        refuse(place, f"'messages' is {_beginning(messages)}, not a list of messages")
    return messages


def turn(value: Any, role: str) -> Sequence[Any]:
    """Return the messages that a value is, or those of one role if it is no list."""
    return value if isinstance(value, list | tuple) else [{"role": role, "content": value}]


def _message(value: Any, place: str, number: int) -> dict[str, Any]:
    """Return message `number`, without keys that have no value. Raises DataError."""
    if not isinstance(value, Mapping):
        refuse(place, f"message {number} is {_beginning(value)}, not an object")
    message = {str(key): each for key, each in value.items() if each is not None}
    role = message.get("role")
    if role not in _ROLES:
        refuse(place, f"message {number} has the role {_beginning(role)}, not {', '.join(_ROLES)}")
    if "content" not in message and message.get("tool_calls"):
        message["content"] = ""
    content = message.get("content")
    if not isinstance(content, str):
        refuse(place, f"the content of message {number} is {_beginning(content)}, not a string")
    return message


def require_turns(messages: Conversation, place: str) -> None:
    """Raise DataError unless the messages are turns of a conversation with an answer."""
    before = None
    for number, message in enumerate(messages, start=1):
        role = message["role"]
        if role not in _FOLLOWING[before]:
            after = "first" if before is None else f"after the {before}'s"
            expected = " or ".join(_FOLLOWING[before])
            refuse(
                place,
                f"message {number} is the {role}'s, and {after} one of {expected} is expected",
            )
        before = role
    if not any(message["role"] == "assistant" for message in messages):
        refuse(place, "no message is the assistant's, so nothing in it carries loss")


def refuse(place: str, problem: str) -> NoReturn:
    """Raise DataError for a row that is not used as it is."""
    raise DataError(f"{place}: {problem}", hint=_HINT)


def _beginning(value: object) -> str:
    return "missing" if value is None else repr(value)[:40]
