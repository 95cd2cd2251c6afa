"""Which models of a tokenizer.json can be used: those that lose neither spaces nor words."""

from __future__ import annotations

from typing import Any

from llmtrain.errors import DataError

_MODELS = ("BPE", "Unigram")  # Hugging Face's other models lose spaces or words


def refuse_affixes(document: object) -> None:
    """Raise DataError if the model marks the inside or the end of words with an affix.

    Such models lose the spaces between words. Some make the library panic, so this is checked
    before the library reads the file.
    """
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        match document:
            case {"model": {**model}} if model.get(key):
                raise DataError(f"its model has a {key}, and loses where spaces are")


def require_supported(document: Any) -> None:
    """Raise DataError unless the model is BPE or unigram and its unknown token, if any, has an id.

    A unigram model must have an unknown token.
    """
    model = document["model"]
    kind = model.get("type", "BPE" if "merges" in model else None)
    if kind not in _MODELS:
        raise DataError(f"its model is a {kind}; {' and '.join(_MODELS)} can be used")
    names = {each["content"] for each in document["added_tokens"]}
    unknown = model.get("unk_token")
    if kind == "BPE" and unknown is not None and unknown not in {*names, *model["vocab"]}:
        raise DataError(f"its unknown token {unknown!r} is not in its vocabulary")
    if kind == "Unigram" and model.get("unk_id") is None:
        raise DataError("it has no unknown token")
    if kind == "BPE":
        _require_unique_ids(model["vocab"])


def _require_unique_ids(vocabulary: dict[str, int]) -> None:
    """Raise DataError if two tokens share an id: one of them could not be decoded."""
    names: dict[int, str] = {}
    for name, token in vocabulary.items():
        other = names.setdefault(token, name)
        if other != name:
            raise DataError(f"{other!r} and {name!r} have the same id, {token}")
