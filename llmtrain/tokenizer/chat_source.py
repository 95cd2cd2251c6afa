"""The chat template in a tokenizer's directory, and the special tokens that it names.

A directory has the template in chat_template.jinja or, as older ones do, in tokenizer_config.json,
which also says what `bos_token` and the like are within it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtrain.errors import DataError
from llmtrain.tokenizer.codec import CONFIG_FILE
from llmtrain.untrusted import parse_json, problem_of, read_bytes

TEMPLATE_FILE = "chat_template.jinja"
_TEMPLATE_BYTES = 1 << 20
_CONFIG_BYTES = 16 << 20
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")


@dataclass(frozen=True, slots=True)
class ChatSource:
    """A chat template's text, and the names of special tokens that it may use."""

    template: str
    special_tokens: tuple[tuple[str, str], ...]  # such as ("eos_token", "</s>")


def read_chat_source(directory: Path) -> ChatSource | None:
    """Return the chat template in `directory`; None if there is none. Raises DataError."""
    try:
        config = _read_config(directory / CONFIG_FILE)
        template = _read_template(directory / TEMPLATE_FILE) or _of_config(config)
    except (OSError, ValueError) as error:
        raise DataError(
            f"the chat template in {directory} cannot be read: {problem_of(error)}",
            hint=f"repair or remove {TEMPLATE_FILE}: without one, conversations are in ChatML",
        ) from None
    return None if template is None else ChatSource(template, tuple(_special_tokens(config)))


def _read_template(path: Path) -> str | None:
    try:
        return read_bytes(path, _TEMPLATE_BYTES, follow_links=True).decode()
    except FileNotFoundError:
        return None


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = parse_json(read_bytes(path, _CONFIG_BYTES, follow_links=True))
    except FileNotFoundError:
        return {}
    return config if isinstance(config, dict) else {}


def _of_config(config: dict[str, Any]) -> str | None:
    """Return the template in tokenizer_config.json: of several, the one named default."""
    match config.get("chat_template"):
        case str(template):
            return template
        case [*named]:
            for each in named:
                match each:
                    case {"name": "default", "template": str(template)}:
                        return template
    return None


def _special_tokens(config: dict[str, Any]) -> Iterable[tuple[str, str]]:
    for key in _SPECIAL_TOKENS:
        match config.get(key):
            case str(name) | {"content": str(name)}:
                yield key, name


def with_chat_source(config: str, source: ChatSource) -> str:
    """Return a tokenizer_config.json for text that the template writes.

    Its special tokens are recognised in such text, and have the names that the template uses.
    """
    values = parse_json(config) | dict(source.special_tokens) | {"split_special_tokens": False}
    return json.dumps(values, indent=2) + "\n"
