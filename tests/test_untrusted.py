"""A file is read whole and as plain data, or refused; never waited for, followed or overrun."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import NonNegativeInt
from pydantic.dataclasses import dataclass

from llmtrain.errors import UsageError
from llmtrain.untrusted import (
    open_regular,
    parse_json,
    parse_model,
    problem_of,
    read_bytes,
    read_json,
    read_lines,
    refuse_link,
)

needs_links = pytest.mark.skipif(os.name == "nt", reason="links need rights there")


@pytest.mark.parametrize("size", [0, 1, 511, 512])
def test_a_file_up_to_the_limit_is_read(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * size)
    assert read_bytes(path, 512) == b"x" * size


@pytest.mark.parametrize("size", [513, 1 << 40])
def test_a_longer_file_is_refused_with_both_sizes(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(size)
    with pytest.raises(OSError, match="and the limit is 512 B") as caught:
        read_bytes(path, 512)
    assert problem_of(caught.value).startswith("it has ")


@needs_links
def test_a_link_is_refused_or_followed_as_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"text")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "file")
    for read in (refuse_link, open_regular, read_json, lambda path: next(read_lines(path))):
        with pytest.raises(UsageError, match="link is a symbolic link") as caught:
            read(link)
        assert caught.value.hint
    assert read_bytes(link, 10, follow_links=True) == b"text"
    refuse_link(tmp_path / "file")
    refuse_link(tmp_path / "nothing")


@needs_links
def test_a_link_that_appears_after_the_look_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"text")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    monkeypatch.setattr("llmtrain.untrusted.refuse_link", lambda path: None)
    with pytest.raises(OSError, match="link"):
        open_regular(tmp_path / "link")


def pipe(path: Path) -> None:
    os.mkfifo(path)


def loop(path: Path) -> None:
    path.symlink_to(path)


KINDS: dict[str, Callable[[Path], None]] = {"directory": Path.mkdir}
if hasattr(os, "mkfifo"):
    KINDS |= {"pipe": pipe, "loop": loop, "device": lambda path: path.symlink_to("/dev/zero")}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_ordinary_file_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "odd"
    KINDS[kind](path)
    with pytest.raises(OSError, match=r"odd") as caught:
        open_regular(path, follow_links=True)
    said = {"loop": None, "directory": "it is a directory"}.get(kind, "it is not an ordinary file")
    assert said is None or problem_of(caught.value) == said


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_that_appears_after_the_look_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"")
    ordinary = path.stat()
    path.unlink()
    os.mkfifo(path)
    monkeypatch.setattr(Path, "stat", lambda *_, **__: ordinary)
    with pytest.raises(OSError, match="not an ordinary file"):
        open_regular(path)


def test_whole_lines_are_read_and_long_ones_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    lines = [b"short", b"", b"x" * 10, b"y" * 11, b"z" * 200_000, b"after", b"cut o"]
    path.write_bytes(b"\n".join(lines))
    assert list(read_lines(path, 10)) == [b"short", b"", b"x" * 10, b"after"]


def test_a_long_line_without_an_end_is_no_line(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"one\n")
    with path.open("ab") as file:
        file.truncate(1 << 26)
    assert list(read_lines(path, 100)) == [b"one"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "nul",
        "{}{}",
        "\ufeff{}",
        "NaN",
        "[Infinity]",
        "-Infinity",
        "1e999",
        "-1e999",
        "18446744073709551616",
        "-9223372036854775809",
        "9" * 5000,
        '{"a": 1, "a": 1}',
        '{"x": {"a": 1, "b": 2, "a": 3}}',
        '"\\ud800"',
        '{"\\udfff": 1}',
        '["\\ude00\\ud83d"]',
        "[" * 33 + "]" * 33,
        "[" * 100_000,
        '{"a":' * 100_000,
        "[" * 990 + "]" * 990,
    ],
    ids=lambda text: text[:20],
)
def test_what_is_not_plain_json_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse_json(text)
    assert len(str(caught.value)) < 200
    with pytest.raises(ValueError, match=r"."):
        parse_json(text.encode())


def test_bytes_that_are_no_unicode_are_a_value_error() -> None:
    for data in (b"\xff", "{}".encode("utf-16"), b'"\xed\xa0\x80"'):
        with pytest.raises(ValueError, match="utf-8"):
            parse_json(data)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_json_does_not_have_can_be_allowed(number: str) -> None:
    assert repr(parse_json(f"[{number}]", allow_nan=True)[0]) == repr(float(number))


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda parts: st.lists(parts, max_size=4) | st.dictionaries(st.text(), parts, max_size=4),
    max_leaves=20,
)


@given(PLAIN)
def test_plain_values_are_read_as_they_were_written(value: object) -> None:
    assert parse_json(json.dumps(value)) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode()) == value


@given(st.text() | st.binary())
def test_anything_is_a_value_or_a_value_error(data: str | bytes) -> None:
    try:
        value = parse_json(data)
    except ValueError:
        return
    assert json.loads(data) == value


def test_32_levels_are_not_too_deep(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[" * 32 + "]" * 32)
    value = read_json(tmp_path / "a.json")
    for _ in range(32):
        value = value[0] if value else None
    assert value is None


def test_the_limit_of_json_is_that_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[]" + " " * 10)
    assert read_json(tmp_path / "a.json", 12) == []
    with pytest.raises(OSError, match="the limit is 11 B"):
        read_json(tmp_path / "a.json", 11)


@dataclass(frozen=True)
class Point:
    """Something that JSON may hold."""

    x: NonNegativeInt
    name: str


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("{", "Expecting"),
        ('{"x": 1, "x": 2, "name": "a"}', "a key occurs twice"),
        ('{"x": -1, "name": "a"}', "x is -1: "),
        ('{"x": 1}', "name: Field required"),
        ("[]", r"it is \[\]: "),
    ],
)
def test_a_model_names_the_first_field_that_is_wrong(data: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}"):
        parse_model(Point, data.encode())


def test_a_model_is_what_the_json_says() -> None:
    assert parse_model(Point, b'{"x": 1, "name": "a"}') == Point(1, "a")
