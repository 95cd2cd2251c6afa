"""YAML to flat `a.b.c → value` entries that know their line. Plain data only."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from llmtrain.errors import UsageError

LARGEST_BYTES = 1 << 20
_DEEPEST_LEVEL = 20
_LARGEST_INTEGER = 2**64
_EXTRAS = {
    yaml.AnchorToken: "anchors and aliases are",
    yaml.AliasToken: "anchors and aliases are",
    yaml.TagToken: "a tag is",
    yaml.DirectiveToken: "a directive is",
}
# What the scanner raises for an escape beyond Unicode, besides its own errors.
_MALFORMED = (yaml.YAMLError, ValueError, OverflowError)


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
    """The plain value that YAML reads in `text`, as on the right of `key:`. Raises UsageError."""
    try:
        _refuse_extras(text, "")
        return _plain(yaml.load(text, _Loader))  # a SafeLoader
    except _MALFORMED as error:
        raise UsageError(f"{text!r} is not a value: {_problem(error)}") from None
    except RecursionError:
        raise UsageError(f"{text[:40]!r}… is nested too deeply") from None


def parse_entries(text: str, origin: str) -> list[Entry]:
    """The leaves of the mapping in `text`. Raises UsageError with `origin` and the line."""
    try:
        _refuse_extras(text, origin)
        node = yaml.compose(text, _Loader)
        if node is None:
            return []
        if not isinstance(node, yaml.MappingNode):
            raise UsageError(f"{origin}:1: a profile is a mapping of sections")
        return list(_leaves(node, "", origin, _Loader(""), set()))
    except _MALFORMED as error:
        raise UsageError(f"{origin}: not YAML: {_problem(error)}") from None
    except RecursionError:
        raise UsageError(f"{origin}: nested too deeply") from None


def _refuse_extras(text: str, origin: str) -> None:
    """Only plain YAML is left: nothing that names a type, refers elsewhere or is half a letter."""
    for token in yaml.scan(text, _Loader):
        where = f"{origin}:{token.start_mark.line + 1}: " if origin else ""
        if type(token) in _EXTRAS:
            raise UsageError(f"{where}{_EXTRAS[type(token)]} not used in profiles")
        if isinstance(token, yaml.ScalarToken) and re.search("[\ud800-\udfff]", token.value):
            raise UsageError(f"{where}half a surrogate pair; write the character itself")


def _plain(value: Any, level: int = 1) -> Any:
    """`value`, which JSON can hold. Raises ValueError."""
    if level > _DEEPEST_LEVEL:
        raise ValueError("nested too deeply")
    if isinstance(value, int) and abs(value) >= _LARGEST_INTEGER:
        raise ValueError("the integer is too large")
    if isinstance(value, (list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            _plain(part, level + 1)
    return value


def _leaves(
    node: yaml.MappingNode, prefix: str, origin: str, loader: _Loader, seen: set[str]
) -> Iterator[Entry]:
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if prefix.count(".") >= _DEEPEST_LEVEL:
            raise UsageError(f"{origin}:{line}: nested too deeply")
        if not isinstance(key_node, yaml.ScalarNode) or not key_node.value:
            raise UsageError(f"{origin}:{line}: a key is a plain word")
        path = prefix + key_node.value
        if path in seen:
            raise UsageError(f"{origin}:{line}: {path} is set twice")
        seen.add(path)
        if isinstance(value_node, yaml.MappingNode):
            yield from _leaves(value_node, path + ".", origin, loader, seen)
        else:
            try:
                value = _plain(loader.construct_object(value_node, deep=True))
            except ValueError as error:
                raise UsageError(f"{origin}:{line}: {path}: {error}") from None
            yield Entry(path, value, line)


def _problem(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return str(error).splitlines()[0]
