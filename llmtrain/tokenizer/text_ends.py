"""How another program's tokenizer begins and ends a text: bos, eos, and whether it adds bos.

A directory says so in tokenizer_config.json (`bos_token`, `eos_token`, `add_bos_token`) and in the
template of tokenizer.json; the first decides where it says anything, as in transformers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtrain.tokenizer.codec import CONFIG_FILE, Ends
from llmtrain.tokenizer.piece import Piece
from llmtrain.untrusted import parse_json, read_bytes

GENERATION_FILE = "generation_config.json"
_MOST_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class StatedEnds:
    """The bos and eos settings of tokenizer_config.json; None where it has none."""

    bos: str | None = None
    eos: str | None = None
    adds_bos: bool | None = None
    puts_bos_by_class: bool = False  # Llama's class for sentencepiece models adds it by default


@dataclass(frozen=True, slots=True)
class Template:
    """The special tokens that a tokenizer.json puts before and after a text."""

    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


def stated_ends(file: Path) -> StatedEnds:
    """Return what the tokenizer_config.json beside a tokenizer's file says."""
    config = _read_object(file.with_name(CONFIG_FILE))
    adds: bool | None = None
    if "add_bos_token" in config or "add_eos_token" in config:
        adds = config.get("add_bos_token") is True
    return StatedEnds(
        _name_of(config.get("bos_token")),
        _name_of(config.get("eos_token")),
        adds,
        str(config.get("tokenizer_class")).startswith("LlamaTokenizer"),
    )


def stop_ids_beside(directory: Path) -> tuple[int, ...]:
    """Return the ids at which a model's generation_config.json stops."""
    match _read_object(directory / GENERATION_FILE).get("eos_token_id"):
        case int(token):
            return (token,)
        case [*tokens] if all(type(token) is int for token in tokens):
            return tuple(tokens)
    return ()


def ends_of(
    stated: StatedEnds,
    template: Template,
    names: Mapping[str, int],
    separator: str,
    *,
    of_model: bool,
) -> Ends | None:
    """Return how texts begin and end; None if the separator does both, and begins prompts.

    It does in a new model, unless the tokenizer adds another token before texts, and none after
    them. In a model that exists it does only where the tokenizer names one token for both, and does
    not say that it adds none.
    """
    bos = stated.bos if stated.bos is not None else next(iter(template.before), None)
    bos_id = None if bos is None else names.get(bos)
    adds = template.before == (bos,) if stated.adds_bos is None else stated.adds_bos
    adds = adds and bos_id is not None
    if bos_id == names[separator]:
        is_one = adds or stated.adds_bos is None or not of_model
        return None if is_one else Ends(bos_id, names[separator], adds_bos=False)
    if not of_model and (not adds or template.after):
        return None
    return Ends(bos_id, names[separator], adds)


def with_template(tokenizer_json: str, bos: str | None, bos_id: int = 0) -> str:
    """Return a tokenizer.json whose template puts `bos` before a text; without, nothing."""
    document = parse_json(tokenizer_json)
    document["post_processor"] = None if bos is None else template_json(bos, bos_id)
    return json.dumps(document, ensure_ascii=False, indent=2) + "\n"


def template_json(bos: str, bos_id: int) -> dict[str, Any]:
    """Return the `post_processor` of a tokenizer.json that puts `bos` before a text."""
    special = {"id": bos, "ids": [bos_id], "tokens": [bos]}
    first: list[object] = [_token(bos, 0), {"Sequence": {"id": "A", "type_id": 0}}]
    second = [_token(bos, 1), {"Sequence": {"id": "B", "type_id": 1}}]
    return {
        "type": "TemplateProcessing",
        "single": first,
        "pair": [*first, *second],
        "special_tokens": {bos: special},
    }


def with_ends(config: str, ends: Ends, pieces: Sequence[Piece]) -> str:
    """Return a tokenizer_config.json that says how texts begin and end."""
    values = parse_json(config) | {
        "bos_token": None if ends.bos_id is None else pieces[ends.bos_id].text,
        "eos_token": pieces[ends.eos_id].text,
        "add_bos_token": ends.adds_bos,
        "add_eos_token": False,
    }
    return json.dumps(values, indent=2) + "\n"


def _token(name: str, type_id: int) -> dict[str, object]:
    return {"SpecialToken": {"id": name, "type_id": type_id}}


def _name_of(value: object) -> str | None:
    match value:
        case str(name) | {"content": str(name)}:
            return name
    return None


def _read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; empty if there is none that can be read."""
    try:
        found = parse_json(read_bytes(path, _MOST_BYTES, follow_links=True))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
