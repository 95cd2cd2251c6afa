"""A tokenizer as a GGUF file holds it, or why llama.cpp would give other ids."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tokenizers import Tokenizer as HuggingFaceTokenizer

from llmtrain.errors import UsageError
from llmtrain.export.pre_tokenizer import find_pre_tokenizer, normalizes
from llmtrain.tokenizer import Tokenizer
from llmtrain.tokenizer.escape import ESCAPE, SPACE_MARK
from llmtrain.tokenizer.structure import read_settings
from llmtrain.untrusted import parse_json

# llama.cpp's token types.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_TYPES = {
    "text": _NORMAL,
    "byte": _BYTE,
    "separator": _CONTROL,
    "control": _CONTROL,
    "unknown": _UNKNOWN,
}
_BYTES = 256
_INSTEAD = "llmtrain export RUN --format hf is read by transformers, with these ids"
_UNIGRAM = (
    "the tokenizer is a unigram one, and llama.cpp's has no byte fall-back: a character outside "
    "the vocabulary would be lost"
)
ESCAPES_DIFFER = (
    "a literal ▁ (U+2581), and U+F2581, have other ids: the tokenizer escapes them, other programs "
    "read ▁ as a space"
)
_NORMALIZED = "text that the tokenizer normalizes has other ids: llama.cpp does not normalize"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokenizer of a GGUF file, in order of id."""

    model: Literal["llama", "gpt2"]  # sentencepiece BPE, byte-level BPE
    pre: str  # how text is split first: a name that llama.cpp knows
    tokens: list[str]
    types: list[int]
    scores: list[float] | None = None  # of "llama"
    merges: list[str] | None = None  # of "gpt2"
    adds_space_prefix: bool = False
    removes_extra_spaces: bool = False
    differs: Callable[[str], bool] = lambda _: False  # texts that are known to have other ids
    known_differences: tuple[str, ...] = ()


def vocabulary_of(tokenizer: Tokenizer, rows: int) -> Vocabulary:
    """Return the tokenizer for a model with so many embedding rows.

    Raises UsageError if llama.cpp has no tokenizer with these ids.
    """
    if tokenizer.kind.name == "huggingface":
        return _byte_level(tokenizer, rows)
    settings = read_settings(tokenizer.model)
    if settings.is_unigram:
        raise UsageError(_UNIGRAM, hint=_INSTEAD)
    pieces = tokenizer.pieces()
    if sum(piece.kind == "byte" for piece in pieces) != _BYTES:
        raise UsageError(
            f"the tokenizer has no piece for each of {_BYTES} bytes, which llama.cpp needs",
            hint=_INSTEAD,
        )
    whole = set(settings.whole_pieces)
    types = [_USER_DEFINED if p.text in whole else _TYPES[p.kind] for p in pieces]
    tokens, types = _with_unused_rows([piece.text for piece in pieces], types, rows)
    scores = [piece.score for piece in pieces] + [0.0] * (len(tokens) - len(pieces))
    escaped = tokenizer.kind.escaped
    return Vocabulary(
        "llama",
        "default",
        tokens,
        types,
        scores=scores,
        adds_space_prefix=settings.adds_dummy_prefix,
        removes_extra_spaces=settings.removes_extra_spaces,
        differs=escapes_in if escaped else lambda _: False,
        known_differences=(ESCAPES_DIFFER,) if escaped else (),
    )


def escapes_in(text: str) -> bool:
    """Return whether a tokenizer that escapes text escapes something in this one."""
    return SPACE_MARK in text or ESCAPE in text


def _byte_level(tokenizer: Tokenizer, rows: int) -> Vocabulary:
    document = parse_json(tokenizer.model)
    if document["model"].get("type") == "Unigram":
        raise UsageError(_UNIGRAM, hint=_INSTEAD)
    if not _is_byte_level_bpe(document):
        raise UsageError(
            "the tokenizer's tokenizer.json is not byte-level BPE, the only kind of it that "
            "llama.cpp reads",
            hint=_INSTEAD,
        )
    pre, text = find_pre_tokenizer(tokenizer.model)
    if pre is None:
        raise UsageError(
            f"llama.cpp splits text in no way that gives these ids: {text[:60]!r} differs",
            hint=_INSTEAD,
        )
    added = {each["id"]: bool(each["special"]) for each in document["added_tokens"]}
    pieces = [tokenizer.piece(token) for token in range(tokenizer.vocab_size)]
    types = [_type_of_added(added.get(token), text) for token, text in enumerate(pieces)]
    tokens, types = _with_unused_rows(pieces, types, rows)
    merges = document["model"]["merges"]
    library = HuggingFaceTokenizer.from_buffer(tokenizer.model)
    is_escaped, changes = tokenizer.kind.escaped, _changes_text(document.get("normalizer"))
    known = ((ESCAPES_DIFFER,) if is_escaped else ()) + ((_NORMALIZED,) if changes else ())
    return Vocabulary(
        "gpt2",
        pre,
        tokens,
        types,
        merges=[each if isinstance(each, str) else " ".join(each) for each in merges],
        differs=lambda text: (is_escaped and escapes_in(text)) or normalizes(library, text),
        known_differences=known,
    )


def _changes_text(normalizer: object) -> bool:
    match normalizer:
        case None | {"type": "Sequence", "normalizers": []}:
            return False
    return True


def _is_byte_level_bpe(document: dict[str, dict[str, object]]) -> bool:
    model, splitter = document["model"], json.dumps(document.get("pre_tokenizer"))
    is_bpe = model.get("type", "BPE") == "BPE" and "merges" in model
    return is_bpe and '"ByteLevel"' in splitter and not model.get("byte_fallback")


def _type_of_added(special: bool | None, text: str) -> int:
    if not text:
        return _UNUSED
    if special is None:
        return _NORMAL
    return _CONTROL if special else _USER_DEFINED


def _with_unused_rows(
    tokens: list[str], types: list[int], rows: int
) -> tuple[list[str], list[int]]:
    """Name ids without a piece, and embedding rows after the last piece."""
    named = [text or f"<|unused_{token}|>" for token, text in enumerate(tokens)]
    unused = range(len(tokens), rows)
    return named + [f"<|unused_{n}|>" for n in unused], types + [_UNUSED] * len(unused)
