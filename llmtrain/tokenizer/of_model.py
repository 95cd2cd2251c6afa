"""The tokenizer of a saved model, and control pieces added to one."""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from llmtrain.errors import DataError
from llmtrain.tokenizer.codec import KIND_FILE, MODEL_FILE
from llmtrain.tokenizer.importing import ImportOptions, import_tokenizer
from llmtrain.tokenizer.piece import reserved_names
from llmtrain.tokenizer.structure import with_control_piece
from llmtrain.tokenizer.text_ends import stop_ids_beside
from llmtrain.tokenizer.tokenizer import Tokenizer
from llmtrain.tokenizer.vocabulary_json import special_token
from llmtrain.untrusted import parse_json


def tokenizer_of_model(directory: Path) -> tuple[Tokenizer, tuple[str, ...]]:
    """Return the tokenizer in a model's directory, with warnings. Raises DataError.

    It is the one that the model was trained with, so one that changes some text is accepted, with
    a warning.
    """
    if (directory / KIND_FILE).is_file():
        return Tokenizer.load(directory), ()
    if (directory / MODEL_FILE).is_file():
        try:
            return Tokenizer.load(directory), ()
        except DataError:
            pass  # a sentencepiece model of another tool: import it
    imported = import_tokenizer(directory, ImportOptions(allow_lossy=True, of_model=True))
    return _stopping(imported.tokenizer, stop_ids_beside(directory)), imported.warnings


def _stopping(tokenizer: Tokenizer, stop_ids: Collection[int]) -> Tokenizer:
    """Return the tokenizer of a model that also stops at other ids, if the tokenizer has them."""
    ends = tokenizer.kind.ends
    known = sorted({token for token in stop_ids if 0 <= token < tokenizer.vocab_size})
    more = tuple(token for token in known if token != tokenizer.eos_id)
    if ends is None or not more:
        return tokenizer
    kind = replace(tokenizer.kind, ends=replace(ends, stop_ids=more))
    return Tokenizer.read_as(kind, tokenizer.model).with_chat(tokenizer.chat)


def with_reserved_pieces(tokenizer: Tokenizer, count: int) -> Tokenizer:
    """Return the tokenizer with `count` more control pieces after its last; other ids are kept."""
    taken = {piece.text for piece in tokenizer.pieces()}
    unused = (name for name in reserved_names(len(taken) + count) if name not in taken)
    names = list(itertools.islice(unused, count))
    model = tokenizer.model
    if tokenizer.kind.name == "huggingface":
        document = parse_json(model)
        first = tokenizer.vocab_size
        document.setdefault("added_tokens", []).extend(
            map(special_token, names, range(first, first + count))
        )
        model = json.dumps(document, ensure_ascii=False).encode()
    else:
        for name in names:
            model = with_control_piece(model, name)
    return Tokenizer.read_as(tokenizer.kind, model).with_chat(tokenizer.chat)
