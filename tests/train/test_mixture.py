"""A run on sources with weights: it is told, recorded, and resumed as if nothing had happened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from llmtrain.data.batches.mixture import MixedSource
from llmtrain.errors import DataError
from llmtrain.progress import Note
from llmtrain.train.events import Started, Step
from llmtrain.train.repetition import mixture_lines, repetition_warnings
from tests.train.harness import Files, InProcessTrainer, Llmtrain, Start

MIXTURE = [{"spec": "corpus.txt", "weight": 1}, {"spec": "digits.txt", "weight": 0.5}]


@pytest.fixture(autouse=True)
def _digits(place: Path) -> None:
    (place / "digits.txt").write_text("".join(f"{n} {n * n}\n" for n in range(1500)))


def recorded(run: Path) -> dict[str, Any]:
    record: dict[str, Any] = yaml.safe_load((run / "run.yaml").read_text())
    return record


@pytest.mark.parametrize("packing", ["concatenate", "best_fit"])
def test_resumed_is_uninterrupted(train: InProcessTrainer, place: Path, packing: str) -> None:
    """Also where the text is gone: what the run needs of it, it has recorded."""
    said = {"data__sources": MIXTURE, "data__packing": packing}
    train(place / "whole", **said)
    train(
        place / "run",
        stop_at=lambda event: isinstance(event, Step) and event.step == 7,
        **said,
    )
    (place / "digits.txt").unlink()
    train(place / "run", resume="auto", **said)
    assert Files(place / "run").digests() == Files(place / "whole").digests()
    assert Files(place / "run").course() == Files(place / "whole").course()
    assert recorded(place / "run")["data"] | {"sources": []} == recorded(place / "whole")[
        "data"
    ] | {"sources": []}


def test_ranks_share_what_one_process_reads(llmtrain: Llmtrain, start: Start, place: Path) -> None:
    data = ("--data", "corpus.txt", "--weight", 1, "--data", "digits.txt", "--weight", 0.5)
    run = ("train", "-p", "tiny.yaml", "--steps", 4, *data)
    process = start(*run, "--nproc", 2, "--out", "two")
    assert llmtrain(*run, "--out", "one").code == 0
    assert process.wait(200) == 0, process.communicate()
    one, two = (
        [line["loss"] for line in Files(place / name).course() if "loss" in line]
        for name in ("one", "two")
    )
    assert len(one) == 4
    assert two == pytest.approx(one, rel=1e-4)


def test_weights_change_what_is_read_and_not_what_is_prepared(
    train: InProcessTrainer, place: Path
) -> None:
    plain = ["corpus.txt", "digits.txt"]
    runs = {"mixed": MIXTURE, "plain": plain, "again": [{"spec": spec} for spec in plain]}
    for name, sources in runs.items():
        train(place / name, data__sources=sources, train__steps=4)
    keys = {recorded(place / name)["data"]["key"] for name in runs}
    assert len(keys) == 1
    courses = {name: Files(place / name).course() for name in runs}
    assert courses["again"] == courses["plain"] != courses["mixed"]
    assert recorded(place / "plain")["data"]["mixture"] == []


def test_a_run_without_weights_needs_no_record_of_a_mixture(
    train: InProcessTrainer, place: Path, reference: Files
) -> None:
    """Runs that were begun before there were mixtures go on."""
    train(place / "run", stop_at=lambda event: isinstance(event, Step) and event.step == 7)
    record = recorded(place / "run")
    del record["data"]["mixture"]
    (place / "run" / "run.yaml").write_text(yaml.safe_dump(record))
    train(place / "run", resume="auto")
    assert Files(place / "run").digests() == reference.digests()


def test_a_record_that_lost_its_mixture_is_refused(train: InProcessTrainer, place: Path) -> None:
    stop = {"stop_at": lambda event: isinstance(event, Step) and event.step == 3}
    train(place / "run", data__sources=MIXTURE, **stop)
    whole = recorded(place / "run")
    for mixture in ([], [{"first_token": 0, "tokens": size} for size in (10**9, 10**9)]):
        record = whole | {"data": whole["data"] | {"mixture": mixture}}
        (place / "run" / "run.yaml").write_text(yaml.safe_dump(record))
        with pytest.raises(DataError, match=r"0 sources with weights|and there are \d+ in all"):
            train(place / "run", resume="auto", data__sources=MIXTURE)


def test_shares_tokens_and_epochs_are_told(train: InProcessTrainer, place: Path) -> None:
    longer = {"train__epochs": 1.0, "eval__every_steps": 1000, "device__compile": False}
    train(place / "run", data__sources=MIXTURE, **longer)
    started = next(event for event in train.events if isinstance(event, Started))
    notes = [event.text for event in train.events if isinstance(event, Note)]
    told = [note for note in notes if "of training" in note]
    assert [note.partition(" tokens")[0].partition(",")[0] for note in told] == [
        "corpus.txt: 66.7% of training",
        "digits.txt: 33.3% of training",
    ]
    # An epoch is as many tokens as all sources have together.
    read = started.horizon_steps * started.tokens_per_step
    assert read == pytest.approx(1 * started.train_tokens, rel=0.05)
    sources = recorded(place / "run")["data"]["mixture"]
    assert sum(source["tokens"] - 1 for source in sources) + 1 == started.train_tokens
    for source, note, share in zip(sources, told, (2 / 3, 1 / 3), strict=True):
        epochs = float(note.split()[-2])
        assert epochs == pytest.approx(read * share / source["tokens"], rel=0.01)


def test_a_source_that_is_read_often_is_warned_of() -> None:
    sources = [MixedSource("much", 1, 0, 10_001), MixedSource("little", 3, 10_000, 1_001)]
    lines = list(mixture_lines(sources, 20, 100))
    assert lines[0] == "much: 25.0% of training, 10k tokens, 0.05 epochs"
    assert lines[1] == "little: 75.0% of training, 1k tokens, 1.5 epochs"
    assert next(mixture_lines(sources, None, 100)) == "much: 25.0% of training, 10k tokens"
    assert list(mixture_lines([], 20, 100)) == []
    assert list(repetition_warnings(53, 100, 11_001, sources)) == []
    (warning,) = repetition_warnings(55, 100, 11_001, sources)
    assert warning.startswith("little: 4.12 epochs over 1k tokens")
    (warning,) = repetition_warnings(55, 100, 1_001, [])
    assert warning.startswith("5.49 epochs over 1k tokens")


def test_weights_on_the_command_line(llmtrain: Llmtrain, place: Path) -> None:
    data = ("--data", "corpus.txt", "--data", "digits.txt")
    run = ("train", "-p", "tiny.yaml", "--steps", 2, *data)
    done = llmtrain(*run, "--weight", 1, "--weight", "0.5", "--out", "a")
    assert (done.code, "33.3% of training" in done.err) == (0, True)
    assert recorded(place / "a")["profile"]["data"]["sources"] == [
        {"spec": "corpus.txt", "weight": 1.0},
        {"spec": "digits.txt", "weight": 0.5},
    ]
    text = '[{"spec": "corpus.txt", "weight": 1}, {"spec": "digits.txt", "weight": 0.5}]'
    same = ("--out", "a", "--resume", "auto", "--steps", 3, "--set", f"data.sources={text}")
    assert llmtrain("train", "-p", "tiny.yaml", *same).code == 0
    other = llmtrain(*run, "--weight", 2, "--weight", 2, "--out", "a", "--resume", "auto")
    assert (other.code, "data.sources" in other.err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--data", "corpus.txt", "--weight", 1, "--weight", 2), "1 --data and 2 --weight"),
        (("--weight", 1), "0 --data and 1 --weight"),
        (("--data", "corpus.txt", "--weight", 0), "above 0"),
        (("--data", "corpus.txt", "--weight", "nan"), "above 0"),
        (("--set", 'data.sources=[{"spec": "a", "weight": 1}, "b"]'), "give one to each"),
        (
            ("--set", 'data.sources=[{"spec": "a", "wait": 1}]'),
            "data.sources.0.wait is not a key here",
        ),
        (("--set", 'data.sources=[{"weight": 1}]'), "data.sources.0.spec is missing"),
        (("--set", "data.sources=[[1]]"), "has to be text"),
    ],
)
def test_weights_that_are_none(llmtrain: Llmtrain, arguments: tuple[str], complaint: str) -> None:
    outcome = llmtrain("train", "-p", "tiny.yaml", "--dry-run", *arguments)
    assert outcome.code == 2
    assert complaint in outcome.err
    assert "--data" in outcome.err or "data.sources" in outcome.err
