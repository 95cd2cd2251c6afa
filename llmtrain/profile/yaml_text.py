"""YAML to flat `a.b.c → value` entries that know their line. Plain data only."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from llmtrain.errors import UsageError

_LARGEST_BYTES = 1 << 20
_DEEPEST_LEVEL = 20


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 6e-4 is a number and a date stays text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if "timestamp" not in tag]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# YAML 1.1 wants a dot in the mantissa and a sign in the exponent; nobody writes numbers so.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?\d[\d_]*(?:\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One leaf of a YAML mapping."""

    path: str  # dotted
    value: Any
    line: int  # from 1


def parse_scalar(text: str) -> Any:
    """The plain value that YAML reads in `text`, as on the right of `key:`."""
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(f"{text!r} is not a value: {_problem(error)}") from None


def parse_entries(text: str, origin: str) -> list[Entry]:
    """The leaves of the mapping in `text`. Raises UsageError with `origin` and the line."""
    if len(text) > _LARGEST_BYTES:
        raise UsageError(f"{origin}: larger than {_LARGEST_BYTES} bytes; a profile is a short text")
    try:
        _refuse_aliases(text, origin)
        node = yaml.compose(text, _Loader)
        if node is None:
            return []
        if not isinstance(node, yaml.MappingNode):
            raise UsageError(f"{origin}:1: a profile is a mapping of sections")
        return list(_leaves(node, "", origin, _Loader(""), 1))
    except yaml.YAMLError as error:
        raise UsageError(f"{origin}: not YAML: {_problem(error)}") from None
    except RecursionError:
        raise UsageError(f"{origin}: nested too deeply") from None


def _refuse_aliases(text: str, origin: str) -> None:
    for token in yaml.scan(text, _Loader):
        if isinstance(token, (yaml.AliasToken, yaml.AnchorToken)):
            line = token.start_mark.line + 1
            raise UsageError(f"{origin}:{line}: anchors and aliases are not used in profiles")


def _leaves(
    node: yaml.MappingNode, prefix: str, origin: str, loader: _Loader, level: int
) -> Iterator[Entry]:
    seen: set[str] = set()
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if level > _DEEPEST_LEVEL:
            raise UsageError(f"{origin}:{line}: nested too deeply")
        if not isinstance(key_node, yaml.ScalarNode) or not key_node.value:
            raise UsageError(f"{origin}:{line}: a key is a plain word")
        if key_node.value in seen:
            raise UsageError(f"{origin}:{line}: {prefix}{key_node.value} is set twice")
        seen.add(key_node.value)
        path = prefix + key_node.value
        if isinstance(value_node, yaml.MappingNode):
            yield from _leaves(value_node, path + ".", origin, loader, level + 1)
        else:
            try:
                value = loader.construct_object(value_node, deep=True)
            except ValueError as error:
                raise UsageError(f"{origin}:{line}: {path}: {error}") from None
            yield Entry(path, value, line)


def _problem(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return str(error).splitlines()[0]
