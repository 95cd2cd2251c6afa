from __future__ import annotations

import pytest

from llmtrain.cli.runs_filter import Values, chosen_runs, parse_conditions
from llmtrain.documents.runs import Run
from llmtrain.errors import UsageError

ROWS: list[tuple[Run, Values]] = [
    (
        Run.of(
            run=name,
            profile="p",
            step=1,
            tokens=1,
            train_loss=None,
            val_loss=None,
            val_bpb=bpb,
            best_val_loss=None,
            elapsed_s=1.0,
            checkpoints=[],
            status="done",
            state="finished",
            started=None,
            tags=tags,
        ),
        {"run": name, "val_bpb": bpb, "tags": tags, "optim.name": "muon", "finished": True},
    )
    for name, bpb, tags in (("a", 1.5, ["x"]), ("b", None, []), ("c", 1.2, ["x", "y"]))
]


def names(*where: str, sort: str | None = None, reverse: bool = False) -> str:
    found = chosen_runs(ROWS, parse_conditions(where), sort, reverse=reverse)
    return "".join(run.run for run in found)


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("run=a", "a"),
        ("run!=a", "bc"),
        ("val_bpb<1.3", "c"),
        ("val_bpb>=1.2", "ac"),
        ("val_bpb=1.50", "a"),
        ("tags=x", "ac"),
        ("tags!=y", "ab"),
        ("optim.name=muon", "abc"),
        ("finished=true", "abc"),
    ],
)
def test_conditions_choose_runs(condition: str, expected: str) -> None:
    assert names(condition) == expected


def test_all_conditions_have_to_be_met() -> None:
    assert names("tags=x", "val_bpb<1.3") == "c"


def test_runs_without_a_value_come_last_in_any_order() -> None:
    assert names(sort="val_bpb") == "cab"
    assert names(sort="val_bpb", reverse=True) == "acb"
    assert names(reverse=True) == "cba"


@pytest.mark.parametrize(
    ("where", "sort", "complaint"),
    [
        ("val_bpb", None, "not KEY=VALUE"),
        ("val_bbp=1", None, "no run has a key val_bbp"),
        ("val_bpb<low", None, "low is not a number"),
        ("run=a", "tagz", "no run has a key tagz"),
    ],
)
def test_what_cannot_be_asked_is_refused(where: str, sort: str | None, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint) as error:
        names(where, sort=sort)
    assert error.value.hint
