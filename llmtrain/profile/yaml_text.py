"""Parsing of YAML into plain data with line numbers, with limits on size, depth and count."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NoReturn

import yaml

from llmtrain.errors import UsageError
from llmtrain.units import format_bytes

# Parsing at these limits takes at most a second.
LARGEST_BYTES = 512 << 10
_MOST_NODES = 20_000
_DEEPEST_LEVEL = 20
_LARGEST_INTEGER = 2**64
_LONGEST_NUMBER = 100  # characters; conversion takes quadratic time in them
# Numbers with surprising values in YAML 1.1: 010 is 8, and 1:30 is 90.
_OCTAL = re.compile(r"[-+]?0[0-7_]+")
_BASE_60 = re.compile(r"[-+]?\d[\d_]*:[\d:._]*")
_HALF_A_PAIR = re.compile("[\ud800-\udfff]")
# The parser's errors; ValueError and OverflowError are for an escape beyond Unicode.
_MALFORMED = (yaml.YAMLError, ValueError, OverflowError)


class _RefusedError(yaml.YAMLError):
    """YAML that is invalid or unsupported here; `line` counts from 1."""

    def __init__(self, line: int, what: str) -> None:
        super().__init__(what)
        self.line = line
        self.what = what


class _Loader(yaml.SafeLoader):
    """A safe YAML loader that reads 6e-4 as a number, and dates, `=` and `<<` as text.

    It rejects anchors, aliases, tags and directives. Excess depth or number of values is rejected
    during parsing, because scanning takes quadratic time in the depth.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._level = 0
        self._nodes = 0

    def refuse(self, what: str) -> NoReturn:
        raise _RefusedError(self.line + 1, what)

    def fetch_anchor(self) -> None:
        self.refuse("anchors and aliases are not used here")

    def fetch_alias(self) -> None:
        self.refuse("anchors and aliases are not used here")

    def fetch_tag(self) -> None:
        self.refuse("a tag is not used here")

    def fetch_directive(self) -> None:
        self.refuse("a directive is not used here")

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._nodes += 1
        if self._nodes > _MOST_NODES:
            self.refuse(f"more than {_MOST_NODES} values")
        if self._level == _DEEPEST_LEVEL:
            self.refuse("nested too deeply")
        self._level += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._level -= 1


_AS_TEXT = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("timestamp", "value", "merge"))
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _AS_TEXT]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# YAML 1.1 requires a dot in the mantissa and a sign in the exponent, which few people write.
_FLOAT = re.compile(r"^[-+]?\d[\d_]*(?:\.\d*)?[eE][-+]?\d+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789"))


class _Dumper(yaml.SafeDumper):
    """A safe YAML dumper for `_Loader`: repeated values are written out, without aliases."""

    def ignore_aliases(self, data: object) -> bool:
        return True


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789"))


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    """Return a node for `text`, with lone surrogates, as in non-Unicode file names, escaped.

    Text with Unicode line ends is double-quoted, because PyYAML would write it in single quotes
    and read the line ends as spaces.
    """
    whole = text.encode(errors="backslashreplace").decode()
    style = '"' if re.search("[\x85\u2028\u2029]", whole) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", whole, style)


_Dumper.add_representer(str, _represent_text)


@dataclass(frozen=True, slots=True)
class Entry:
    """A leaf of nested YAML mappings; an empty mapping is one whose value is None."""

    path: str  # dotted
    value: Any
    line: int  # from 1


def parse_scalar(text: str) -> Any:
    """Return the plain value of `text`, parsed as after `key:`. Raises UsageError."""
    shown = repr(text) if len(text) <= 60 else f"{text[:40]!r}…"
    try:
        node = yaml.compose(text, _Loader)
        return None if node is None else _value(node, _Loader(""))
    except _MALFORMED as error:
        raise UsageError(f"{shown} is not a value: {_problem(error)}") from None


def parse_document(text: str, origin: str) -> Any:
    """Return the plain value of a YAML document. Raises UsageError with `origin` and the line."""
    with _named(origin):
        node = yaml.compose(text, _Loader)
        return None if node is None else _value(node, _Loader(""))


def parse_entries(text: str, origin: str) -> list[Entry]:
    """Return the leaves of the mapping in `text`. Raises UsageError with `origin` and the line."""
    with _named(origin):
        node = yaml.compose(text, _Loader)
        if node is None:
            return []
        if not isinstance(node, yaml.MappingNode):
            raise _RefusedError(1, "a profile is a mapping of sections")
        return list(_leaves(node, "", _Loader(""), set()))


def dump_document(value: Mapping[str, Any], origin: str) -> str:
    """Return `value` as text for `parse_document`. Raises UsageError if it is over the limits."""
    text = yaml.dump(dict(value), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    if len(text.encode()) > LARGEST_BYTES:
        raise UsageError(f"{origin} would be larger than {format_bytes(LARGEST_BYTES)}")
    parse_document(text, origin)
    return text


@contextmanager
def _named(origin: str) -> Iterator[None]:
    """Raise YAML errors of the block as UsageError with `origin`, and the line if known."""
    try:
        yield
    except _RefusedError as error:
        raise UsageError(f"{origin}:{error.line}: {error.what}") from None
    except _MALFORMED as error:
        raise UsageError(f"{origin}: not YAML: {_problem(error)}") from None


def _leaves(
    node: yaml.MappingNode, prefix: str, loader: _Loader, seen: set[str]
) -> Iterator[Entry]:
    for key_node, value_node in node.value:
        path = prefix + _key(key_node)
        line = key_node.start_mark.line + 1
        if path in seen:
            raise _RefusedError(line, f"{path} is set twice")
        seen.add(path)
        if isinstance(value_node, yaml.MappingNode):
            if not value_node.value:
                yield Entry(path, None, line)
            yield from _leaves(value_node, path + ".", loader, seen)
            continue
        try:
            yield Entry(path, _value(value_node, loader), line)
        except _RefusedError as error:
            raise _RefusedError(error.line, f"{path}: {error.what}") from None


def _value(node: yaml.Node, loader: _Loader) -> Any:
    """Return a node as plain data: JSON types, and non-finite numbers too."""
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, loader)
    if isinstance(node, yaml.SequenceNode):
        return [_value(part, loader) for part in node.value]
    return _scalar(node, loader)


def _mapping(node: yaml.MappingNode, loader: _Loader) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = _key(key_node)
        if key in values:
            raise _RefusedError(key_node.start_mark.line + 1, f"{key} is set twice")
        values[key] = _value(value_node, loader)
    return values


def _key(node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode) or not node.value:
        raise _RefusedError(node.start_mark.line + 1, "a key is a plain word")
    return _whole(node)


def _scalar(node: yaml.Node, loader: _Loader) -> str | int | float | bool | None:
    is_number = node.tag.endswith((":int", ":float"))
    if is_number and len(node.value) > _LONGEST_NUMBER:
        raise _RefusedError(node.start_mark.line + 1, "the integer is too large: 2**64 or more")
    if is_number and (_OCTAL.fullmatch(node.value) or _BASE_60.fullmatch(node.value)):
        what = "octal" if _OCTAL.fullmatch(node.value) else "in base 60"
        raise _RefusedError(
            node.start_mark.line + 1,
            f"{node.value} is {what} in YAML; write a plain number, 90s or 1h30m, or quote a text",
        )
    value = _whole_number(node.value, loader.construct_object(node))
    if isinstance(value, int) and abs(value) >= _LARGEST_INTEGER:
        raise _RefusedError(node.start_mark.line + 1, "the integer is too large: 2**64 or more")
    if value is None or isinstance(value, (int, float)):
        return value
    return _whole(node)


def _whole_number(text: str, value: Any) -> Any:
    """Return the integer of a float written with an exponent, as 1e6; other values unchanged."""
    is_whole = isinstance(value, float) and _FLOAT.match(text) and value.is_integer()
    if not is_whole or not 1 <= abs(value) < _LARGEST_INTEGER:
        return value
    exact = Fraction(text.replace("_", ""))
    return int(exact) if exact == value else value


def _whole(node: yaml.Node) -> str:
    """Return the text of a scalar. Raises _RefusedError if it has a lone surrogate."""
    text: str = node.value
    if _HALF_A_PAIR.search(text):
        what = "half a surrogate pair; write the character itself"
        raise _RefusedError(node.start_mark.line + 1, what)
    return text


def _problem(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return str(error).splitlines()[0]
