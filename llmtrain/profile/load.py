"""Merge the layers of a run's settings and record the origin of each value.

From lowest to highest precedence:
schema default < profile < environment (`LLMTRAIN_TRAIN__STEPS`) < `--set` < named flag
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

import llmtrain
from llmtrain.errors import UsageError
from llmtrain.files import escape_names
from llmtrain.magic import other_content
from llmtrain.profile.requirements import usage_error
from llmtrain.profile.schema import EXCLUSIVE_GROUPS, Profile
from llmtrain.profile.setting import Layer, Setting, as_written
from llmtrain.profile.yaml_text import LARGEST_BYTES, parse_entries, parse_scalar
from llmtrain.untrusted import CONVERT_HINT, problem_of, read_bytes

ENVIRONMENT_PREFIX = "LLMTRAIN_"
S = TypeVar("S", bound=BaseModel)
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class LoadedProfile:
    """A validated profile and the origin of every value that is not a default."""

    profile: Profile
    origins: Mapping[str, str]

    def origin_of(self, path: str) -> str:
        """Return the origin of `path`: a file with its line, a variable, a flag, or `default`."""
        return self.origins.get(path, "default")


def load_profile(
    profile: str | Layer | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    assignments: Sequence[str] = (),
    flags: Layer | None = None,
) -> LoadedProfile:
    """Return the profile merged from all layers. Raises UsageError.

    `profile` is the name of a shipped profile, a file, or a layer of settings. `environment`
    defaults to that of the process.
    """
    base = profile_layer(profile) if isinstance(profile, str) else profile or {}
    variables = os.environ if environment is None else environment
    return validate_profile(merge_layers(base, variables, assignments, flags or {}))


def merge_layers(
    base: Layer, environment: Mapping[str, str], assignments: Sequence[str], flags: Layer
) -> dict[str, Setting]:
    """Return each setting from the highest layer with it. Raises UsageError for unknown keys."""
    layers = (base, _environment_layer(environment), _assignment_layer(assignments), flags)
    merged = _merge(layers)
    _refuse_unknown(merged)
    return merged


def load_section(section: type[S], name: str, merged: Mapping[str, Setting]) -> S:
    """Return one section of the profile, validated without the others. Raises UsageError."""
    try:
        return section.model_validate_json(json.dumps(_nested(merged).get(name, {})))
    except ValidationError as error:
        located: list[ErrorDetails] = [
            {**each, "loc": (name, *each["loc"])} for each in error.errors()
        ]
        raise usage_error(located, merged) from None


def profile_from_values(values: Mapping[str, Any], origin: str) -> Profile:
    """Return the profile of nested values, as recorded in a run directory. Raises UsageError."""
    return validate_profile({path: Setting(v, origin) for path, v in flat_values(values)}).profile


def shipped_profiles() -> dict[str, Path]:
    """Return the files of the profiles shipped with llmtrain, by name."""
    package = Path(llmtrain.__file__).parent
    for directory in (package / "profiles", package.parent / "profiles"):
        if directory.is_dir():
            return {path.stem: path for path in sorted(directory.glob("*.yaml"))}
    return {}


def profile_layer(profile: str) -> Layer:
    """Return the settings of a shipped profile or of a profile file. Raises UsageError."""
    path = _profile_path(profile)
    text = _profile_text(path)
    label = path.name if profile in shipped_profiles() else str(path)
    sections = known_sections()
    layer = {
        entry.path: Setting(entry.value, f"{label}:{entry.line}")
        for entry in parse_entries(text, label)
        if entry.value is not None or entry.path not in sections  # an empty section sets nothing
    }
    name = Setting(profile_name(path.stem), label)
    return layer if "name" in layer else {"name": name, **layer}


def _profile_text(path: Path) -> str:
    try:
        content = read_bytes(path, LARGEST_BYTES, follow_links=True)
        what = other_content(content) if content else None  # an empty profile sets nothing
        if what is not None:
            raise ValueError(f"it is {what}")
        return content.decode()
    except (OSError, ValueError) as error:
        hint = CONVERT_HINT if isinstance(error, UnicodeDecodeError) else None
        raise UsageError(f"profile {path}: {problem_of(error)}", hint=hint) from None


def profile_name(text: str) -> str:
    """Return the name of a profile that is made from a file name or other text."""
    return _NOT_IN_NAMES.sub("-", text).strip("-._")[:64] or "custom"


def flat_values(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted paths and values of nested mappings."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat_values(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def known_paths(section: type[BaseModel] = Profile, prefix: str = "") -> list[str]:
    """Return the dotted path of every key of a profile that has a value."""
    paths: list[str] = []
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            paths += known_paths(kind, f"{prefix}{name}.")
        else:
            paths.append(prefix + name)
    return paths


def known_sections() -> set[str]:
    """Return the dotted path of every section of a profile."""
    words = [path.split(".")[:-1] for path in known_paths()]
    return {".".join(each[: n + 1]) for each in words for n in range(len(each))}


def did_you_mean(word: str, choices: Iterable[str]) -> str | None:
    """Return the choice most similar to `word`; None if none is similar."""
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return close[0] if close else None


def _profile_path(profile: str) -> Path:
    shipped = shipped_profiles()
    if profile in shipped:
        return shipped[profile]
    path = Path(profile)
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        if path.exists() and not path.is_dir():
            return path
        raise UsageError(
            f"profile file {profile} {'is a directory' if path.is_dir() else 'does not exist'}",
            hint="llmtrain profiles show cpu-small > my.yaml",
        )
    if path.exists():
        what = "a directory, and no" if path.is_dir() else "not a"
        raise UsageError(
            f"{profile} is {what} profile file: their names end in .yaml or .yml",
            hint="text is named by --data; llmtrain profiles show cpu-small > my.yaml",
        )
    close = did_you_mean(profile, shipped)
    raise UsageError(
        f"unknown profile {profile!r}; there are {', '.join(shipped)}",
        hint=f"did you mean {close}?" if close else "llmtrain profiles list",
    )


def _environment_layer(environment: Mapping[str, str]) -> Layer:
    layer: dict[str, Setting] = {}
    for variable, text in environment.items():
        name = variable.removeprefix(ENVIRONMENT_PREFIX)
        if name != variable and "__" in name:
            path = name.lower().replace("__", ".")
            layer |= _settings_in(path, text, f"environment {variable}")
    return layer


def _assignment_layer(assignments: Sequence[str]) -> Layer:
    layer: dict[str, Setting] = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path:
            raise UsageError(
                f"--set {assignment!r} is not KEY=VALUE", hint="--set train.tokens_per_step=8192"
            )
        layer |= _settings_in(path.strip(), text, f"--set {assignment}")
    return layer


def _settings_in(path: str, text: str, origin: str) -> Layer:
    """Return the setting in `text`, or one for each key if `text` is a mapping.

    Keys that the mapping omits keep their values. Raises UsageError.
    """
    try:
        value = parse_scalar(text)
    except UsageError as error:
        written = as_written(path, json.dumps(text[:40], ensure_ascii=False), origin)
        is_number = text.strip().isdecimal()
        hint = None if is_number else f"in YAML a text with signs is quoted: {written}"
        raise UsageError(f"{path}: {error.message} ({origin})", hint=hint) from None
    if not isinstance(value, Mapping):
        return {path: Setting(value, origin)}
    return {inner: Setting(v, origin) for inner, v in flat_values(value, f"{path}.")}


def _merge(layers: Sequence[Layer]) -> dict[str, Setting]:
    merged: dict[str, Setting] = {}
    for layer in layers:
        for group in EXCLUSIVE_GROUPS:
            said = [p for p in group if p in layer and layer[p].value is not None]
            if len(said) > 1:
                both = " and ".join(f"{p} ({layer[p].origin})" for p in said)
                raise UsageError(f"{both} are both set; keep one of {', '.join(group)}")
            if said:
                merged = {p: s for p, s in merged.items() if p not in group}
        merged |= layer
    return merged


def _refuse_unknown(merged: Mapping[str, Setting]) -> None:
    known, sections = known_paths(), known_sections()
    for path, setting in merged.items():
        if path not in known and path not in sections:
            close = _similar_key(path, known)
            raise UsageError(
                f"unknown key {path} ({setting.origin})",
                hint=f"did you mean {close}?" if close else "llmtrain profiles schema",
            )


def _similar_key(path: str, known: Sequence[str]) -> str | None:
    """Return the known key most similar to `path`, preferably in its section; None if none is."""
    section, _, word = path.rpartition(".")
    siblings = {p.rpartition(".")[2]: p for p in known if p.rpartition(".")[0] == section}
    close = did_you_mean(word, siblings)
    if close:
        return siblings[close]
    elsewhere = {p.rpartition(".")[2]: p for p in known}
    if word in elsewhere or not siblings:  # the right word in another section, or no section
        close = did_you_mean(word, elsewhere)
    return elsewhere[close] if close else None


def validate_profile(merged: Mapping[str, Setting]) -> LoadedProfile:
    """Return the validated profile of merged settings. Raises UsageError."""
    try:
        text = json.dumps(escape_names(_nested(merged)))
        profile = Profile.model_validate_json(text)
    except ValidationError as error:
        raise usage_error(error.errors(), merged) from None
    origins = {path: setting.origin for path, setting in merged.items()}
    return LoadedProfile(profile, escape_names(origins))


def _nested(merged: Mapping[str, Setting]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for path, setting in merged.items():
        *parents, leaf = path.split(".")
        level = nested
        for depth, parent in enumerate(parents, start=1):
            level = level.setdefault(parent, {})
            if not isinstance(level, dict):
                section = ".".join(parents[:depth])
                raise UsageError(f"{section} is a section, not a value ({merged[section].origin})")
        level[leaf] = setting.value
    return nested
