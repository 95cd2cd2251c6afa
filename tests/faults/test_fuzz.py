"""Nothing but our own errors comes out of a reader; the long version is `tests.faults.fuzz`."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtrain.errors import LlmtrainError
from tests.faults import fuzz
from tests.faults.fuzz import reader_named
from tests.faults.mutations import numbered_input

NAMES = fuzz.reader_names()


@pytest.mark.parametrize("name", NAMES)
def test_a_valid_file_is_accepted(tmp_path: Path, name: str) -> None:
    reader = reader_named(name, tmp_path)
    reader.read(numbered_input(reader, 0, 0), tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_accepted_or_refused_by_an_error_of_ours(
    tmp_path: Path, name: str
) -> None:
    reader = reader_named(name, tmp_path)
    ends = {"accepted": 0, "refused": 0}

    @settings(max_examples=60, derandomize=True)
    @given(st.integers(0, 2**62))
    def law(number: int) -> None:
        try:
            reader.read(numbered_input(reader, 1, number), tmp_path)
        except LlmtrainError as error:
            assert error.message  # noqa: PT017
            ends["refused"] += 1
        else:
            ends["accepted"] += 1

    law()
    assert all(ends.values()) or name in {"metrics", "probe", "safetensors"}, ends


def test_inputs_are_the_same_for_the_same_seed(tmp_path: Path) -> None:
    reader = reader_named("state", tmp_path)
    first = [numbered_input(reader, 0, number) for number in range(50)]
    assert first == [numbered_input(reader, 0, number) for number in range(50)]
    assert len(set(first)) > 40
    assert first[1:] != [numbered_input(reader, 1, number) for number in range(1, 50)]


def test_the_long_version_reads_in_another_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fuzz.main(["--reader", "trap-none", "--inputs", "50"]) == 0
    row = capsys.readouterr().out.splitlines()[1].split()
    assert row[:5] == ["trap-none", "50", "25", "25", "0"]


@pytest.mark.parametrize(
    ("trap", "inputs", "said"),
    [
        ("stray", 2, "KeyError: 'not one of ours'"),
        ("abort", 2, "ended with exit code -6"),
        ("hang", 1, "computes for longer than 1 s"),
        ("memory", 2, "MemoryError"),
    ],
)
def test_the_long_version_notices(trap: str, inputs: int, said: str, tmp_path: Path) -> None:
    if trap in ("abort", "memory"):
        pytest.importorskip("resource")
    tally = fuzz.run_reader(f"trap-{trap}", 0, inputs, tmp_path / "progress")
    assert tally.inputs == len(tally.failures) == inputs
    assert all(said in failure for failure in tally.failures)
    assert tally.rejected + tally.accepted == 0
