"""The short version of `python -m tests.faults.memory`: a run that gets by, and one refused."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from llmtrain.units import parse_bytes
from tests.faults.confinement import confined
from tests.faults.memory import Case, Outcome, cases, rows, run_case

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="where RLIMIT_DATA is kept to")


def outcome_of(case: Case, limit: str, directory: Path) -> Outcome:
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 7))) for _ in range(4000)]
    text = "\n".join(" ".join(draw.choices(words, k=9)) for _ in range(4000))
    (directory / "corpus.txt").write_text(text)
    with confined("rlimit", parse_bytes(limit)) as confinement:
        return run_case(case, confinement, directory, steps=2, data=str(directory / "corpus.txt"))


def test_a_run_whose_memory_something_else_holds_gets_by_with_less(tmp_path: Path) -> None:
    found = outcome_of(Case(256, 16, "auto", ballast=0.3), "1GiB", tmp_path)

    assert found.is_allowed, found.log
    if found.exit_code == 0:  # how much a process maps varies with the machine: it may not do
        assert found.steps == 2
        assert found.name() in ("trained", "replanned"), found.log
    else:
        assert "could not be allocated" in found.log or "ran out" in found.log


def test_a_run_that_cannot_fit_is_refused_with_both_figures(tmp_path: Path) -> None:
    found = outcome_of(Case(256, 16, "16"), "512MiB", tmp_path)

    assert found.exit_code == 3, found.log
    assert found.steps == 0
    assert "micro-batch 16 × 256 tokens need" in found.said
    assert "RLIMIT_DATA" in found.said


def test_every_kind_of_case_is_drawn_and_told() -> None:
    drawn = list(cases(20))
    assert len(drawn) == 20
    assert {bool(case.ballast) for case in drawn} == {True, False}
    assert any(case.growth for case in drawn)
    assert any(case.compiled for case in drawn)
    assert drawn == list(cases(20))
    killed = Outcome(-9, 1, ["4×1"], "", "", 1.0)
    assert not killed.is_allowed
    assert "SIGNAL 9" in "\n".join(rows([(drawn[0], killed)]))
