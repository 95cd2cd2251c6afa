"""Find out whose configuration a file is, and convert it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmtrain.errors import UsageError
from llmtrain.profile.convert import huggingface, llm_trainer, nanogpt
from llmtrain.profile.convert.rules import Conversion, Source, convert
from llmtrain.profile.load import LoadedProfile, flat_values, profile_name, validate_profile
from llmtrain.profile.setting import Setting
from llmtrain.profile.yaml_text import LARGEST_BYTES, parse_document
from llmtrain.untrusted import parse_json, problem_of, read_bytes

_SECTIONS = {"model", "training", "data", "tokenizer"}


def convert_file(path: Path) -> Conversion:
    """Return what a configuration becomes. Raises UsageError if it is of no tool that is known."""
    try:
        text = read_bytes(path, LARGEST_BYTES, follow_links=True).decode()
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {problem_of(error)}") from None
    values: Mapping[str, Any]
    if path.suffix == ".py":
        values = nanogpt.read_assignments(text, str(path))
        return _converted(path, values, "nanogpt")
    values = _mapping(path, text)
    if _SECTIONS & values.keys():
        flat = dict(flat_values({k: v for k, v in values.items() if v is not None}))
        return _converted(path, flat, "llm-trainer")
    return _converted(path, values, "huggingface")


def profile_of(conversion: Conversion, path: Path) -> LoadedProfile:
    """Return the converted profile, validated. Raises UsageError."""
    by = {p: entry.name for entry in reversed(conversion.entries) for p in entry.settings}
    settings = {p: Setting(v, f"{path.name}: {by[p]}") for p, v in conversion.settings.items()}
    return validate_profile({"name": Setting(profile_name(path.stem), path.name), **settings})


def _mapping(path: Path, text: str) -> Mapping[str, Any]:
    is_json = path.suffix == ".json"
    try:
        values = parse_json(text) if is_json else parse_document(text, str(path))
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}") from None
    if not isinstance(values, dict) or not values:
        raise UsageError(f"{path} is not a mapping of settings")
    return values


def _converted(path: Path, values: Mapping[str, Any], source: Source) -> Conversion:
    tables = {"llm-trainer": llm_trainer, "nanogpt": nanogpt, "huggingface": huggingface}
    table = tables[source]
    if not values.keys() & table.RULES.keys():
        raise UsageError(
            f"{path} has no key that a configuration of {source} has",
            hint="what can be converted: llm-trainer's YAML, nanoGPT's config/*.py, "
            "TrainingArguments as JSON",
        )
    return convert(values, table.RULES, table.DEFAULTS, source)
