"""Quantities are read exactly, and what is written can be read again."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmtrain.units import (
    format_bytes,
    format_count,
    format_duration,
    parse_bytes,
    parse_count,
    parse_duration_s,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0s", 0),
        ("90s", 90),
        ("30m", 1800),
        ("1.5h", 5400),
        ("1h30m", 5400),
        ("2d", 172800),
        (" 2H ", 7200),
        ("1d2h3m4.5s", 93784.5),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "m", "-5m", "30 m", "5m10", "1e3s", "5min", "1..5s"])
def test_what_is_not_a_duration_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration; write 150s"):
        parse_duration_s(text)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("7", 7),
        ("20_000", 20_000),
        ("50M", 50_000_000),
        ("1.5B", 1_500_000_000),
        ("2g", 2 * 10**9),
        ("0.5k", 500),
        ("3 T", 3 * 10**12),
        ("9007199254740993", 9007199254740993),
        ("4.1M", 4_100_000),
        ("9007199.254740993b", 9007199254740993),
    ],
)
def test_counts_are_exact(text: str, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize(
    ("text", "count"),
    [("1024", 1024), ("8GiB", 2**33), ("500MB", 5 * 10**8), ("1.5 kib", 1536), ("2TB", 2 * 10**12)],
)
def test_sizes_are_exact(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize(
    "text", ["", "M", "-1", "5X", "1e-6", "1e999", "1.5", "GiB", "5 0", "1..5M", "9" * 5000]
)
def test_what_is_not_a_number_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a|is too large"):
        parse_count(text)
    with pytest.raises(ValueError, match=r"is not a|is too large"):
        parse_bytes(text)


def test_a_fraction_of_a_byte_is_refused() -> None:
    with pytest.raises(ValueError, match="not a whole number"):
        parse_bytes("1.5B")


@given(st.text(alphabet="0123456789._ kKmMgGtTbBiIsShHdD-+e", max_size=400))
@example("1" * 400 + ".5M")
def test_reading_raises_nothing_but_value_error(text: str) -> None:
    for parse in (parse_count, parse_bytes, parse_duration_s):
        with contextlib.suppress(ValueError):
            assert parse(text) >= 0


@given(st.integers(0, 10**15))
def test_a_written_count_is_read_within_its_three_digits(count: int) -> None:
    assert parse_count(format_count(count)) == pytest.approx(count, rel=0.005)


@given(st.integers(0, 2**50))
@example(1000)
@example(1023)
@example(round(999.7 * 2**20))
@example(2**50)
def test_a_written_size_is_read_within_its_three_digits(count: int) -> None:
    text = format_bytes(count)
    assert parse_bytes(text) == pytest.approx(count, rel=0.006)
    assert len(text.split()[0].replace(".", "")) <= 4
    assert "e" not in text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1024, "1 KiB"),
        (1536 * 2**20, "1.5 GiB"),
        (round(99.97 * 2**10), "100 KiB"),
        (round(999.7 * 2**10), "0.976 MiB"),
        (80 * 2**30, "80 GiB"),
        (5000 * 2**40, "5000 TiB"),
    ],
)
def test_sizes_as_written(count: int, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1k"),
        (26_393_000, "26.4M"),
        (999_600, "1M"),
        (10**15, "1000T"),
    ],
)
def test_counts_as_written(count: int, text: str) -> None:
    assert format_count(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (2.34, "2.3s"),
        (42.4, "42s"),
        (59.6, "1m 00s"),
        (245, "4m 05s"),
        (3599.7, "1h 00m"),
        (7380, "2h 03m"),
        (4 * 3600 + 3 * 86400, "3d 04h"),
    ],
)
def test_durations_as_written(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
