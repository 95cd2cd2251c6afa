"""`llmtrain profiles list|show|validate|schema`."""

from __future__ import annotations

import json as json_text
import re
from typing import Annotated

import typer

from llmtrain.cli.command import command, group
from llmtrain.cli.options import JsonOption, SetOption
from llmtrain.cli.voice import Voice

_PLAIN_WORD = re.compile(r"[A-Za-z][\w-]*(:[\w-]+)*|\d+(\.\d+)?s", re.ASCII)
# YAML takes these for line ends, or not at all.
_NOT_IN_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")

NameArgument = Annotated[
    str, typer.Argument(metavar="PROFILE", help="A shipped profile's name, or a YAML file.")
]


def register(app: typer.Typer) -> None:
    """`profiles` is a group of `app`."""
    profiles = group("What can be trained: the profiles, their values and their schema.")
    app.add_typer(profiles, name="profiles")
    command(profiles, "list")(list_profiles)
    command(profiles, "show")(show)
    command(profiles, "validate")(validate)
    command(profiles, "schema")(schema)


def list_profiles(voice: Voice, json: JsonOption = False) -> int:
    """The shipped profiles with their sizes."""
    from llmtrain.profile.load import load_profile, shipped_profiles
    from llmtrain.profile.shape import shape_of
    from llmtrain.units import format_count

    rows = []
    for name, path in shipped_profiles().items():
        profile = load_profile(name, environment={}).profile
        rows.append(
            {
                "name": name,
                "parameters": shape_of(profile.model).parameters,
                "context": profile.model.context,
                "vocab_size": profile.model.vocab_size,
                "tokens_per_step": profile.train.tokens_per_step,
                "path": str(path),
            }
        )
    if json:
        voice.document({"profiles": rows})
        return 0
    for row in sorted(rows, key=lambda row: int(str(row["parameters"]))):
        voice.result(
            f"{row['name']:<12}{format_count(int(str(row['parameters']))):>7} parameters   "
            f"context {row['context']:<5} vocabulary {row['vocab_size']:<6} "
            f"{row['tokens_per_step']} tokens/step"
        )
    return 0


def show(
    voice: Voice, profile: NameArgument, set_: SetOption = None, json: JsonOption = False
) -> int:
    """Every value of a profile, as YAML that `--profile` takes, with its origin behind it."""
    from llmtrain.profile.load import load_profile

    loaded = load_profile(profile, assignments=set_ or [])
    if json:
        origins = {path: loaded.origin_of(path) for path in _leaf_paths(loaded.profile.values())}
        voice.document({"profile": loaded.profile.values(), "origins": origins})
        return 0
    for line in _yaml_lines(loaded.profile.values(), loaded.origin_of):
        voice.result(line)
    return 0


def validate(voice: Voice, profile: NameArgument, json: JsonOption = False) -> int:
    """Check a profile file; what is wrong is told with its line."""
    from llmtrain.profile.load import load_profile
    from llmtrain.profile.shape import shape_of
    from llmtrain.units import format_count

    loaded = load_profile(profile, environment={})
    parameters = shape_of(loaded.profile.model).parameters
    if json:
        voice.document({"valid": True, "name": loaded.profile.name, "parameters": parameters})
    else:
        voice.result(f"{profile} is valid: {format_count(parameters)} parameters")
    return 0


def schema(voice: Voice) -> int:
    """The JSON Schema of profile files."""
    from llmtrain.profile.schema import Profile

    voice.result(json_text.dumps(Profile.model_json_schema(), indent=2))
    return 0


def _leaf_paths(values: dict[str, object]) -> list[str]:
    from llmtrain.profile.load import flat_values

    return [path for path, _ in flat_values(values)]


def _yaml_lines(values: dict[str, object], origin_of: object) -> list[str]:
    assert callable(origin_of)
    lines = []
    for key, value in values.items():
        if isinstance(value, dict):
            lines.append(f"{key}:")
            lines += [
                _commented(f"  {inner}: {_scalar(content)}", origin_of(f"{key}.{inner}"))
                for inner, content in value.items()
            ]
        else:
            lines.append(_commented(f"{key}: {_scalar(value)}", origin_of(key)))
    return lines


def _scalar(value: object) -> str:
    """A value as YAML that reads back as the same: a plain word where it stays text, or JSON."""
    from llmtrain.profile.yaml_text import parse_scalar

    if isinstance(value, str) and _PLAIN_WORD.fullmatch(value) and parse_scalar(value) == value:
        return value
    text = json_text.dumps(value, ensure_ascii=False)
    return _NOT_IN_YAML.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _commented(line: str, origin: str) -> str:
    return line if origin == "default" else f"{line:<40}  # {' '.join(origin.split())}"
