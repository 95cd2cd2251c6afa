"""Conversion of tiktoken rank files to tokenizer.json, with the same ids.

A file has one line for each token: its bytes in base64, a space, and its rank, which is also its
id. The pre-tokenization pattern is not in the file and has to be supplied.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping

from llmtrain.errors import DataError, UsageError
from llmtrain.tokenizer.byte_unicode import letters_of
from llmtrain.tokenizer.piece import merges_of

_MOST_TOKENS = 1 << 20
_CONTRACTION = "'(?:[sSſdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])"
_UPPER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}"
_LOWER = r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_OTHER = r"[^\r\n\p{L}\p{N}]"

# The pre-tokenization patterns of named encodings, in the regular expressions of tokenizer.json.
PATTERNS: Mapping[str, str] = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "cl100k_base": rf"{_CONTRACTION}|{_OTHER}?\p{{L}}+|\p{{N}}{{1,3}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+\z|\s*[\r\n]|\s+(?!\S)|\s",
    "o200k_base": rf"{_OTHER}?[{_UPPER}]*[{_LOWER}]+(?:{_CONTRACTION})?"
    rf"|{_OTHER}?[{_UPPER}]+[{_LOWER}]*(?:{_CONTRACTION})?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}

# In tokenizer.json "^" and "$" match at each line, and "}+" repeats instead of being possessive.
_TAKEN_AS_IT_IS = re.compile(r"\\[pP]\{[^}]*\}|\\.|\[\^?(?:\\.|[^\]\\])*\]")
_MEANS_SOMETHING_ELSE = re.compile(r"[$^]|\}\+")


def ranks_json(data: bytes, pattern: str) -> bytes:
    """Convert the contents of a rank file to tokenizer.json; ids are the ranks.

    `pattern` is a name in `PATTERNS` or a regular expression. Raises DataError, with the line
    number, for an invalid line, and UsageError for an unknown or unsupported pattern.
    """
    ranks = _read_ranks(data)
    lacking = next((byte for byte in range(256) if bytes([byte]) not in ranks), None)
    if lacking is not None:
        raise DataError(f"byte 0x{lacking:02X} has no rank, so that not every text has ids")
    split = {"type": "Split", "pattern": {"Regex": split_pattern(pattern)}, "behavior": "Isolated"}
    letters = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    document: dict[str, object] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{**split, "invert": False}, {**letters, "use_regex": False}],
        },
        "post_processor": None,
        "decoder": {**letters, "use_regex": False},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,  # a pre-token in the vocabulary is not split
            "vocab": _vocabulary(ranks),
            "merges": [tuple(map(letters_of, pair)) for pair in merges_of(ranks, ranks)],
        },
    }
    return json.dumps(document, ensure_ascii=False).encode()


def split_pattern(pattern: str) -> str:
    """Return the regular expression that `pattern` is or names. Raises UsageError."""
    if pattern in PATTERNS:
        return PATTERNS[pattern]
    if re.fullmatch(r"\w*", pattern):
        raise UsageError(
            f"{pattern!r} is no pattern that is known by name: {', '.join(PATTERNS)}",
            hint="--pattern cl100k_base, or a regular expression",
        )
    found = _MEANS_SOMETHING_ELSE.search(_TAKEN_AS_IT_IS.sub("", pattern))
    if found:
        raise UsageError(
            f"{found[0]!r} in the pattern does not mean the same in tokenizer.json",
            hint=r"write \z for the end of the text, and {1,3} without + behind it",
        )
    return pattern


def _read_ranks(data: bytes) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), start=1):
        word, _, rank = line.partition(b" ")
        try:
            token = base64.b64decode(word, validate=True)
        except binascii.Error:
            raise DataError(f"line {number} is not base64 and a rank") from None
        if not token or not rank.isdigit() or len(rank) > 7 or int(rank) >= _MOST_TOKENS:
            raise DataError(f"line {number} is not base64 and a rank")
        if token in ranks:
            raise DataError(f"line {number} ranks a token that has a rank")
        ranks[token] = int(rank)
    if len(set(ranks.values())) < len(ranks):
        raise DataError("two tokens have one rank")
    return ranks


def _vocabulary(ranks: Mapping[bytes, int]) -> dict[str, int]:
    """Map spellings to ids; unused ids get placeholders with a space, which no spelling has."""
    vocabulary = {letters_of(token): rank for token, rank in ranks.items()}
    unused = set(range(max(vocabulary.values()) + 1)) - set(vocabulary.values())
    return vocabulary | {f"<|no token {rank}|>": rank for rank in sorted(unused)}
