"""Valid files turned into ones that somebody who knows the format might send."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import yaml

Mutator = Callable[[bytes, Random], bytes]


@dataclass(frozen=True, slots=True)
class Reader:
    """What reads, beside a valid file and how to make others of it."""

    valid: bytes
    mutate: Mutator
    read: Callable[[bytes, Path], object]


def numbered_input(reader: Reader, seed: int, number: int) -> bytes:
    """Input `number`: the valid file first, and always the same for the same seed."""
    if number == 0:
        return reader.valid
    return reader.mutate(reader.valid, Random(struct.pack("<qq", seed, number)))


_DEEP = "@@deep@@"  # in place of a value that Python could not write out itself
_HUGE_INTEGER = "@@huge@@"
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 7, 255, 65535, 65536, 2**31 - 1, 2**31, 2**32, 2**53 + 1),
    *(2**63 - 1, 2**63, -(2**63), 2**64, 10**30, -(10**30), _HUGE_INTEGER),
    *(0.0, -0.0, 0.5, 1e-320, 1e308, 1e400, float("nan"), float("inf"), float("-inf")),
    *("", "a", "0", "auto", "nan", "null", "1e999", "true", "30m", "cpu", "builtin:python"),
    *("../../../etc/passwd", "/etc/passwd", "C:\\x", "a\0b", "\ud800", "\x1b[2J", "é" * 500),
    *("x" * 70_000, "!!python/object/apply:os.system [id]", "__import__('os')", "${HOME}", "*a"),
    *([], {}, [[]], [None], {"": None}, {"a": {"b": {"c": 1}}}, [0] * 300, _DEEP),
    {f"k{number}": number for number in range(300)},
)
WORDS = (
    *(b"\0", b"\xff", b"\x80", b"\n", b"\r", b"\t", b" " * 40, b"{", b"}", b"[", b"]", b",", b":"),
    *(b'"', b"'", b"\\", b"\\ud800", b"NaN", b"-", b"- ", b"? ", b": ", b"&a ", b"*a", b"!!str "),
    *(b"!!python/name:os.system ", b"<<: ", b"%YAML 1.1\n", b"---\n", b"...\n", b"|\n", b">\n"),
    *(b"#", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xc0\x80", b"9" * 400, b"1:" * 200, b"e9999"),
    *(b"[" * 3000, b"{" * 3000, b'{"a":' * 2000, b"\x1f\x8b\x08", b"PK\x03\x04", b"\x80\x04\x95"),
)
_FLOATS = (0.0, -0.0, -1.0, 1e-45, -3e38, float("inf"), float("nan"))
_EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1)


def any_bytes(data: bytes, draw: Random) -> bytes:
    """A few damages that know nothing of the format."""
    for _ in range(draw.choice((1, 1, 1, 2, 3, 8))):
        data = draw.choice(_BLIND)(data, draw)
    return data


def _flip(data: bytes, draw: Random) -> bytes:
    at = _place(data, draw)
    return data[:at] + bytes([_byte(data, at) ^ 1 << draw.randrange(8)]) + data[at + 1 :]


def _overwrite(data: bytes, draw: Random) -> bytes:
    at = _place(data, draw)
    return data[:at] + draw.randbytes(draw.randint(1, 8)) + data[at + 8 :]


def _cut(data: bytes, draw: Random) -> bytes:
    return data[: _place(data, draw)]


def _take_out(data: bytes, draw: Random) -> bytes:
    at = _place(data, draw)
    return data[:at] + data[at + draw.choice((1, 2, 10, 100)) :]


def _insert(data: bytes, draw: Random) -> bytes:
    at = _place(data, draw)
    return data[:at] + draw.choice(WORDS) + data[at:]


def _splice(data: bytes, draw: Random) -> bytes:
    at, start = _place(data, draw), _place(data, draw)
    return data[:at] + data[start : start + draw.choice((5, 50, 500))] + data[at:]


def _repeat(data: bytes, draw: Random) -> bytes:
    start = _place(data, draw)
    piece = data[start : start + draw.choice((1, 10, 60))]
    return data[:start] + piece * draw.choice((2, 10, 400)) + data[start:]


def _extreme(data: bytes, draw: Random) -> bytes:
    at, form = _place(data, draw), draw.choice(["<B", "<H", "<I", "<Q", ">I"])
    number = draw.choice(_EXTREMES) & (256 ** struct.calcsize(form) - 1)
    return data[:at] + struct.pack(form, number) + data[at + struct.calcsize(form) :]


_BLIND = (_flip, _flip, _overwrite, _cut, _take_out, _insert, _insert, _splice, _repeat, _extreme)


def _place(data: bytes, draw: Random) -> int:
    """Anywhere, and often near an end, where headers are."""
    size = max(1, len(data))
    if draw.random() < 0.3:
        return draw.choice(
            (draw.randrange(min(64, size)), size - 1 - draw.randrange(min(300, size)))
        )
    return draw.randrange(size)


def _byte(data: bytes, at: int) -> int:
    return data[at] if at < len(data) else 0


def tree(value: Any, draw: Random) -> Any:
    """The same value, but for a few of its parts."""
    for _ in range(draw.choice((1, 1, 2, 4))):
        value = _changed(value, draw)
    return value


def _changed(value: Any, draw: Random) -> Any:
    """One part replaced, removed, renamed, doubled or put in another place."""
    if not isinstance(value, (dict, list)) or not value or draw.random() < 0.15:
        return draw.choice(VALUES)
    if isinstance(value, list):
        return _changed_list(value, draw)
    key = draw.choice(list(value))
    others = {name: part for name, part in value.items() if name != key}
    deed = draw.randrange(10)
    if deed == 0:
        return others
    if deed == 1:
        return {**others, draw.choice(("", "a", "../x", "\0", key + key, key.upper())): value[key]}
    if deed == 2:
        return {**value, draw.choice(("more", key + " ", "__class__")): draw.choice(VALUES)}
    if deed == 3:
        return {**value, key: draw.choice(list(value.values()))}
    if deed == 4:
        return {**value, key: {key: value[key]}}
    if deed == 5 and type(value[key]) is int:
        return {**value, key: value[key] + draw.choice((-1, 1, 2**16, -(2**33)))}
    return {**value, key: _changed(value[key], draw)}


def _changed_list(value: list[Any], draw: Random) -> list[Any]:
    at = draw.randrange(len(value))
    deed = draw.randrange(6)
    if deed == 0:
        return value[:at] + value[at + 1 :]
    if deed == 1:
        return value[: at + 1] * draw.choice((2, 50)) + value[at:]
    if deed == 2:
        return [*value[:at], draw.choice(VALUES), *value[at:]]
    return [*value[:at], _changed(value[at], draw), *value[at + 1 :]]


def json_text(value: Any, draw: Random) -> bytes:
    """`value` as JSON, which may say what JSON does not, and say a key twice."""
    text = json.dumps(value, ensure_ascii=draw.random() < 0.5, indent=draw.choice((None, 2)))
    depth = draw.choice((10, 40, 2000))
    text = text.replace(f'"{_DEEP}"', "[" * depth + "]" * depth)
    text = text.replace(f'"{_HUGE_INTEGER}"', "9" * draw.choice((25, 5000)))
    if draw.random() < 0.1 and ', "' in text:
        text = text.replace(', "', f', "{draw.choice(("a", "step", "bytes"))}": 0, "', 2)
    return text.encode(errors="surrogatepass")


def json_file(data: bytes, draw: Random) -> bytes:
    """One JSON value with other parts, and now and then broken."""
    if draw.random() < 0.25:
        return any_bytes(data, draw)
    text = json_text(tree(json.loads(data), draw), draw)
    return any_bytes(text, draw) if draw.random() < 0.15 else text


def json_lines(data: bytes, draw: Random) -> bytes:
    """Lines of which a few have other parts, are missing, doubled, or end elsewhere."""
    if draw.random() < 0.25:
        return any_bytes(data, draw)
    lines = data.splitlines()
    for _ in range(draw.choice((1, 2, 5))):
        at = draw.randrange(len(lines))
        deed = draw.randrange(5)
        if deed == 0:
            lines.insert(at, draw.choice(WORDS))
        elif deed == 1:
            lines[at] = any_bytes(lines[at], draw).replace(b"\n", b"")
        else:
            lines[at] = _changed_line(lines[at], draw)
    return draw.choice((b"\n", b"\n", b"\n", b"\r\n", b"")).join(lines) + b"\n"


def _changed_line(line: bytes, draw: Random) -> bytes:
    try:
        return json_text(tree(json.loads(line), draw), draw).replace(b"\n", b"")
    except (ValueError, RecursionError):
        return line


def yaml_file(data: bytes, draw: Random) -> bytes:
    """A document with other parts, or with other marks between them."""
    deed = draw.random()
    if deed < 0.3:
        return any_bytes(data, draw)
    if deed < 0.5:
        lines = data.splitlines(keepends=True)
        at = draw.randrange(len(lines))
        lines[at] = draw.choice((b"  ", b"- ", b"", b"&a ", b"? ", b"!!map ")) + lines[at].lstrip()
        return b"".join(lines)
    value = tree(yaml.safe_load(data), draw)
    if deed < 0.8:
        return json_text(value, draw)  # which YAML reads as well
    text = yaml.dump(
        value, allow_unicode=draw.random() < 0.5, default_flow_style=draw.random() < 0.3
    )
    return text.encode(errors="surrogatepass")


def tensor_file(data: bytes, draw: Random) -> bytes:
    """Another header before the same data, of the length that is said, or of none."""
    if draw.random() < 0.3:
        return any_bytes(data, draw)
    (length,) = struct.unpack("<Q", data[:8])
    header = json_text(tree(json.loads(data[8 : 8 + length]), draw), draw)
    said = len(header) if draw.random() < 0.85 else draw.choice(_EXTREMES)
    whole = struct.pack("<Q", said) + header + data[8 + length :]
    return any_bytes(whole, draw) if draw.random() < 0.1 else whole


def protobuf(data: bytes, draw: Random, depth: int = 0) -> bytes:
    """A message with other fields: missing, doubled, in another order, of another length."""
    fields = _fields(data)
    if not fields or draw.random() < 0.15:
        return any_bytes(data, draw)
    for _ in range(draw.choice((1, 1, 2, 4))):
        at = draw.choice((draw.randrange(len(fields)), max(0, len(fields) - 1 - draw.randrange(3))))
        number, wire, content = fields[at]
        deed = draw.randrange(8)
        if deed == 0:
            fields = fields[:at] + fields[at + 1 :] or fields
        elif deed == 1:
            fields[at:at] = [fields[at]] * draw.choice((1, 300))
        elif deed == 2:
            fields[at] = (draw.choice((1, 2, 3, 4, 5, 6, 35, 44, 2**29 - 1)), wire, content)
        elif deed == 3:
            fields[at], fields[0] = fields[0], fields[at]
        elif deed == 4:
            fields.insert(at, (draw.choice((2, 3, 5)), 2, b"\x12\x28" + draw.randbytes(40)))
        elif wire == 2 and depth < 2 and deed < 7:
            fields[at] = (number, wire, protobuf(content, draw, depth + 1))
        elif wire == 2:
            fields[at] = (number, wire, draw.choice((b"", b"x" * 1000, b"x" * 5000, content * 3)))
        elif wire == 5:
            fields[at] = (number, 5, struct.pack("<f", draw.choice(_FLOATS)))
        else:
            fields[at] = (number, 0, _varint(draw.choice((*range(9), *_EXTREMES))))
    return b"".join(_field(*field) for field in fields)


Field = tuple[int, int, bytes]


def _fields(data: bytes) -> list[Field]:
    """The fields of a message; none where it is no message."""
    fields: list[Field] = []
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        start, wire = at, key & 7
        if wire == 0:
            _, at = _read_varint(data, at)
        elif wire == 2:
            length, start = _read_varint(data, at)
            at = start + length
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        else:
            return []
        if at > len(data):
            return []
        fields.append((key >> 3, wire, data[start:at]))
    return fields


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while at < len(data):
        byte = data[at]
        value, shift, at = value | (byte & 0x7F) << shift, shift + 7, at + 1
        if byte < 0x80:
            break
    return value, at


def _varint(number: int) -> bytes:
    head, rest = number & 0x7F, number >> 7
    return bytes([head | 0x80]) + _varint(rest) if rest else bytes([head])


def _field(number: int, wire: int, content: bytes) -> bytes:
    length = _varint(len(content)) if wire == 2 else b""
    return _varint(number << 3 | wire) + length + content


def compressed(mutate: Mutator) -> Mutator:
    """Damage within a gzip file, or to it."""

    def changed(data: bytes, draw: Random) -> bytes:
        if draw.random() < 0.5:
            return gzip.compress(mutate(gzip.decompress(data), draw), 1, mtime=0)
        return any_bytes(data, draw)

    return changed
