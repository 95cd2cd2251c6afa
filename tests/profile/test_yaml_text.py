"""YAML from anywhere is plain data of bounded size, or a UsageError with its line."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtrain.errors import UsageError
from llmtrain.profile.yaml_text import (
    LARGEST_BYTES,
    dump_document,
    parse_document,
    parse_entries,
    parse_scalar,
)

LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{name}: &{name} [*{before}, *{before}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
CODE = [
    "!!python/object/apply:os.system ['touch owned']",
    "!!python/object/new:os.system ['touch owned']",
    "!!python/name:os.system",
    "!!python/module:os",
    "!python/object:os.system {}",
    "!<tag:yaml.org,2002:python/object/apply:os.system> ['touch owned']",
    "%TAG ! tag:yaml.org,2002:python/\n---\n!object/apply:os.system ['touch owned']",
]


@pytest.mark.parametrize("text", CODE)
@pytest.mark.parametrize("frame", ["{}", "a: {}", "a:\n  b:\n  - {}"], ids=["whole", "key", "deep"])
def test_what_names_code_is_refused_where_it_stands(text: str, frame: str) -> None:
    whole = text if text.startswith("%") else frame.format(text)
    for parse in (parse_document, parse_entries):
        with pytest.raises(UsageError, match=r"here:\d: a (tag|directive) is not used here"):
            parse(whole, "here")
    with pytest.raises(UsageError, match="is not used here"):
        parse_scalar(whole)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (LAUGHS, "here:1: anchors and aliases are not used here"),
        ("[" * 100_000, "here:1: nested too deeply"),
        ("{" * 100_000, "here:1: nested too deeply"),
        ("{a: " * 50_000, "here:1: nested too deeply"),
        ("? " * 100_000, "here:1: nested too deeply"),
        ("- " * 100_000, "here:1: nested too deeply"),
        ("a:\n" + "".join(" " * n + "b:\n" for n in range(1, 200)), r"here:\d+: nested too deeply"),
        ("[" + "1," * 100_000 + "]", "here:1: more than 20000 values"),
        ("a: 5\n" + "".join(f"k{n}: 1\n" for n in range(20_000)), "more than 20000 values"),
        ("a: " + "1:" * 100_000 + "1", "here:1: the integer is too large"),
        ("a: " + "1:" * 100_000 + "1.5", "here:1: the integer is too large"),
        ("a: 0x" + "f" * 100_000, "here:1: the integer is too large"),
        ("a: 1" + "0" * 100_000 + "e5", "here:1: the integer is too large"),
        ("a: {b: 1, b: 2}", "here:1: b is set twice"),
        ("a: {<<: {b: 1}, <<: 2}", "here:1: << is set twice"),
        ('a:\n- "\\ud800"', "here:2: half a surrogate pair"),
        ('"\\ud800": 1', "here:1: half a surrogate pair"),
        ("? [a]\n: 1", "here:1: a key is a plain word"),
    ],
    ids=lambda value: value[:20],
)
def test_too_much_is_refused_where_it_is_met(text: str, what: str) -> None:
    with pytest.raises(UsageError, match=what) as caught:
        parse_document(text, "here")
    assert len(caught.value.message) < 200


def test_depth_does_not_cost_quadratic_time() -> None:
    """A scanner that goes on to the end takes minutes for this."""
    code = (
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_CPU, (20, 20))\n"
        "from llmtrain.errors import UsageError\n"
        "from llmtrain.profile.yaml_text import parse_document\n"
        "try: parse_document('[' * (512 << 10), 'here')\n"
        "except UsageError as error: print(error.message)\n"
    )
    pytest.importorskip("resource")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "here:1: nested too deeply\n"


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False)
    | st.text()
    | st.from_regex(r"\A[-+]?\d{1,3}(\.\d*)?([eE:][-+]?\d{1,2}){0,2}\Z")
    | st.sampled_from(["2024-01-01", "yes", "null", "~", "6e-4", "1:30", "<<", "=", "!a", "&a"]),
    lambda parts: (
        st.lists(parts, max_size=3) | st.dictionaries(st.text(min_size=1), parts, max_size=3)
    ),
    max_leaves=15,
)


@given(st.dictionaries(st.text(min_size=1), PLAIN, max_size=4))
def test_what_is_written_is_read(value: dict[str, Any]) -> None:
    assert parse_document(dump_document(value, "here"), "here") == value


def test_a_name_that_is_not_unicode_can_be_written() -> None:
    text = dump_document({"command": ["--out", "caf\udce9"]}, "here")
    assert parse_document(text, "here") == {"command": ["--out", r"caf\udce9"]}


@pytest.mark.parametrize("value", [["x" * LARGEST_BYTES], [1] * 20_001], ids=["long", "many"])
def test_what_could_not_be_read_is_not_written(value: list[object]) -> None:
    with pytest.raises(UsageError, match=r"run\.yaml"):
        dump_document({"values": value}, "run.yaml")


@given(
    st.text(
        alphabet=st.sampled_from(list("ab:-?[]{},#&*!|>'\"%@`~<=. \n\t0159eE_+\\x"))
        | st.characters()
    )
)
def test_any_text_is_data_or_a_usage_error(text: str) -> None:
    try:
        parse_document(text, "here")
    except UsageError as error:
        assert error.message.startswith("here:")  # noqa: PT017
