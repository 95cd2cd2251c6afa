"""Conversion of GPT-2's vocab.json and merges.txt to tokenizer.json, with the same ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmtrain.errors import DataError
from llmtrain.tokenizer.byte_unicode import bytes_of
from llmtrain.tokenizer.codec import CONFIG_FILE
from llmtrain.untrusted import parse_json, problem_of, read_bytes

VOCABULARY_FILE = "vocab.json"
MERGES_FILE = "merges.txt"
ADDED_FILE = "added_tokens.json"
_MOST_BYTES = 64 << 20
_LONGEST_ID = 12


def vocabulary_json(vocabulary_file: Path) -> bytes:
    """Convert a vocabulary file, and the merges file next to it, to tokenizer.json.

    Entries that are neither a byte nor the result of a merge become special tokens, as do those
    that added_tokens.json and tokenizer_config.json beside it add. Raises DataError if a file is
    invalid or merges.txt cannot be read.
    """
    vocabulary = parse_json(read_bytes(vocabulary_file, _MOST_BYTES, follow_links=True))
    if not isinstance(vocabulary, dict) or not all(type(n) is int for n in vocabulary.values()):
        raise DataError("it does not say the id of each token")
    merges = _read_merges(vocabulary_file.with_name(MERGES_FILE), vocabulary)
    merged = {left + right for left, right in merges}
    special = {
        name: token
        for name, token in vocabulary.items()
        if name not in merged and (len(name) > 1 or not _is_byte(name))
    }
    config = _beside(vocabulary_file, CONFIG_FILE)
    special |= _added(vocabulary_file, config, vocabulary)
    adds_prefix = config.get("add_prefix_space") is True
    letters = {"type": "ByteLevel", "add_prefix_space": adds_prefix, "trim_offsets": True}
    document = {
        "version": "1.0",
        "added_tokens": [
            special_token(name, token)
            for name, token in sorted(special.items(), key=lambda item: item[1])
        ],
        "pre_tokenizer": {**letters, "use_regex": True},
        "decoder": {**letters, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": [list(pair) for pair in merges]},
    }
    return json.dumps(document, ensure_ascii=False).encode()


def _beside(file: Path, name: str) -> dict[str, Any]:
    """Return the JSON object in the file `name` beside `file`; empty if there is none."""
    try:
        found = parse_json(read_bytes(file.with_name(name), _MOST_BYTES, follow_links=True))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"{name} beside it cannot be read: {problem_of(error)}") from None
    if not isinstance(found, dict):
        raise DataError(f"{name} beside it is not an object")
    return found


def _added(file: Path, config: dict[str, Any], vocabulary: dict[str, int]) -> dict[str, int]:
    """Return the tokens that the files beside the vocabulary add, with their ids.

    They follow the vocabulary without a gap, as Hugging Face numbers them. Raises DataError.
    """
    added: dict[str, Any] = dict(_beside(file, ADDED_FILE))
    described = config.get("added_tokens_decoder")
    for token, each in (described if isinstance(described, dict) else {}).items():
        match each:
            case {"content": str(name)} if token.isdecimal() and len(token) < _LONGEST_ID:
                added.setdefault(name, int(token))
    added = {name: token for name, token in added.items() if name not in vocabulary}
    first = 1 + max(vocabulary.values(), default=-1)
    order = sorted(added.items(), key=lambda item: str(item[1]).zfill(_LONGEST_ID))
    for expected, (name, token) in enumerate(order, start=first):
        if token != expected:
            raise DataError(f"the added token {name!r} has the id {token}, not {expected}")
    return dict(order)


def special_token(name: str, token: int) -> dict[str, object]:
    """Return an entry of `added_tokens` in tokenizer.json."""
    flags = ("single_word", "lstrip", "rstrip", "normalized")
    return {"id": token, "content": name, **dict.fromkeys(flags, False), "special": True}


def _read_merges(path: Path, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    try:
        lines = read_bytes(path, _MOST_BYTES, follow_links=True).decode().split("\n")
    except (OSError, ValueError) as error:
        raise DataError(f"{path.name} beside it cannot be read: {problem_of(error)}") from None
    merges = []
    for number, line in enumerate(lines, start=1):
        if (number == 1 and line.startswith("#version")) or not line.strip():
            continue
        pair = line.rstrip("\r").split(" ")
        if len(pair) != 2 or not {*pair, "".join(pair)} <= vocabulary.keys():
            raise DataError(f"line {number} of {path.name} is not two tokens that make a third")
        merges.append((pair[0], pair[1]))
    return merges


def _is_byte(name: str) -> bool:
    try:
        return len(bytes_of(name)) == 1
    except KeyError:
        return False
