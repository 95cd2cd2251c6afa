"""`llmtrain finetune` on preferences: the answers that were chosen become the likelier ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmtrain.files import cache_directory
from tests.cli.conftest import Command
from tests.cli.test_finetune import SMALL, digests, metrics
from tests.pretrained import save_pretrained

FLAGS = ("--data", "prefs.jsonl", *SMALL, "--set", "model.context=96")


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model to fine-tune and preferences, in the working directory."""
    monkeypatch.chdir(tmp_path)
    write_rows(Path("prefs.jsonl"), 60)
    return save_pretrained(tmp_path / "base", initializer_range=0.05, max_position_embeddings=96)


def write_rows(file: Path, count: int, **changes: Any) -> None:
    rows = [{"prompt": f"{n}?", "chosen": "ab", "rejected": "cd", **changes} for n in range(count)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def reference_files() -> list[Path]:
    return sorted(cache_directory().glob("shards/*/references-*.bin"))


@pytest.mark.parametrize("lora", [(), ("--lora", "r=2")])
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(
    base: Path, llmtrain: Command, lora: tuple[str, ...]
) -> None:
    start = ("finetune", "base", *FLAGS, *lora, "--set", "checkpoint.every_steps=3", "--out")
    schedule = ("--set", "optim.schedule=wsd", "--set", "optim.decay_fraction=0")
    rate = ("--set", "optim.learning_rate=0.003")
    assert llmtrain(*start, "whole", *schedule, *rate, "--steps", 8).code == 0
    computed = [file.stat().st_mtime_ns for file in reference_files()]
    assert computed
    assert llmtrain(*start, "parts", *schedule, *rate, "--steps", 5).code == 0
    again = llmtrain(*start, "parts", *schedule, *rate, "--steps", 8, "--resume", "auto")
    assert again.code == 0
    assert [file.stat().st_mtime_ns for file in reference_files()] == computed
    assert digests("parts") == digests("whole")
    found = metrics("whole")
    by_step = {(m["step"], "val_loss" in m): m for m in metrics("parts")}
    assert all(by_step[line["step"], "val_loss" in line] == line for line in found)
    assert found[0]["loss"] == pytest.approx(0.6931, abs=1e-3)  # it is still the first model
    assert found[-1]["val_loss"] < found[0]["loss"]


def test_micro_batches_are_one_batch(base: Path, llmtrain: Command) -> None:
    for out, micro_batch in (("one", 2), ("two", 1)):
        flags = ("--out", out, "--steps", 3, "--set", f"train.micro_batch={micro_batch}")
        assert llmtrain("finetune", "base", *FLAGS, *flags).code == 0
    for one, two in zip(metrics("one"), metrics("two"), strict=True):
        assert one == pytest.approx(two, rel=1e-5)


def test_preferences_are_learnt_and_evaluated(base: Path, llmtrain: Command) -> None:
    flags = ("--epochs", 4, "--set", "optim.learning_rate=0.01", "--out", "run")
    done = llmtrain("finetune", "base", *FLAGS, *flags)
    assert done.code == 0
    assert "prefers 100.0% as chosen" in done.err + done.out
    lines = map(json.loads, Path("run/metrics.jsonl").read_text().splitlines())
    last = [line for line in lines if "val_loss" in line][-1]
    assert last["reward_accuracy"] == 1.0
    assert last["reward_margin"] > 0
    evaluated = llmtrain("eval", "run", "--force-cpu", "--json").document
    scores = evaluated["preferences"]
    assert scores["accuracy"] == 1.0
    assert scores["loss"] == pytest.approx(last["val_loss"], rel=0.02)  # in bf16
    assert scores["margin"] == pytest.approx(last["reward_margin"], rel=0.02)
    write_rows(Path("swapped.jsonl"), 5, chosen="cd", rejected="ab")
    other = llmtrain("eval", "run", "--force-cpu", "--data", "swapped.jsonl", "--json").document
    assert other["preferences"]["accuracy"] == 0.0
    assert other["preferences"]["pairs"] == 5
    shown = llmtrain("eval", "run", "--force-cpu", "--data", "swapped.jsonl")
    assert "prefers as chosen" in shown.out


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a", "chosen": "b"}, "no 'rejected'"),
        ({"prompt": "a", "completion": "b"}, "of one kind"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "equal"),
        ({"prompt": "a", "chosen": "b", "rejected": 3}, "not a string"),
    ],
)
def test_a_broken_row_is_an_error_with_its_place(
    base: Path, llmtrain: Command, row: dict[str, Any], said: str
) -> None:
    with Path("prefs.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    found = llmtrain("finetune", "base", *FLAGS, "--steps", 1)
    assert found.code == 5
    assert "prefs.jsonl:61" in found.err
    assert said in found.err


def test_a_preference_among_conversations_is_an_error(base: Path, llmtrain: Command) -> None:
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "a", "chosen": "b", "rejected": "c"}]
    Path("mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = llmtrain("finetune", "base", "--data", "mixed.jsonl", *SMALL, "--steps", 1)
    assert found.code == 5
    assert "mixed.jsonl:2" in found.err
    assert "of one kind" in found.err


def test_pairs_that_do_not_fit_are_counted(base: Path, llmtrain: Command) -> None:
    with Path("prefs.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "a" * 80, "chosen": "b", "rejected": "c"}) + "\n")
    found = llmtrain("finetune", "base", *FLAGS, "--steps", 1)
    assert found.code == 0
    assert "1 are left out" in found.err + found.out
    Path("prefs.jsonl").write_text(
        json.dumps({"prompt": "a" * 80, "chosen": "b", "rejected": "c"}) + "\n"
    )
    none = llmtrain("finetune", "base", *FLAGS, "--steps", 1)
    assert none.code == 5


def test_data_inspect_shows_a_pair(base: Path, llmtrain: Command) -> None:
    shown = llmtrain("data", "inspect", "--chat", "base", "--data", "prefs.jsonl")
    assert shown.code == 0
    assert "[[ab<|reserved_1|>]]" in shown.out
    assert "[[cd<|reserved_1|>]]" in shown.out
    document = llmtrain(
        "data", "inspect", "--chat", "base", "--data", "prefs.jsonl", "--json"
    ).document
    assert document["conversations"] == 60
    assert document["rejected"][-1] == {"text": "cd<|reserved_1|>", "carries_loss": True}


def test_the_plan_and_the_profile_say_what_is_trained(base: Path, llmtrain: Command) -> None:
    shown = llmtrain("finetune", "base", *FLAGS, "--dry-run", "--json").document
    assert shown["plan"]["loss"]["value"] == "chunks"
    assert not Path("runs").exists()
    sft = llmtrain("finetune", "base", *FLAGS, "--set", "data.rows=chat", "--steps", 1)
    assert sft.code == 5
    native = llmtrain("finetune", "base", *FLAGS, "--set", "device.loss=native", "--dry-run")
    assert native.code == 2
    assert "pairs of answers" in native.err
