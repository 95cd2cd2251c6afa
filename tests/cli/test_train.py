from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

from tests.cli.conftest import Command, ProcessCommand

TRAIN = ("train", "-p", "tiny.yaml", "--out", "run")


def test_time_ends_the_run_saved(process: ProcessCommand, place: Path) -> None:
    done = process(*TRAIN, "--time", "8s", "--json", "-q")

    document = json.loads(done.stdout)
    assert done.returncode == 0
    assert document["stopped"] in ("time", "done")
    assert document["steps"] >= 1
    assert document["val_loss"] is not None
    assert (Path(document["checkpoint"]) / "manifest.json").is_file()
    record = yaml.safe_load((place / "run" / "run.yaml").read_text())
    assert record["profile"]["train"]["time"] == "8s"
    assert "steps" not in record["profile"]["train"]
    # what runs is what was typed
    assert record["sessions"][0]["command"][1:] == [*TRAIN, "--time", "8s", "--json", "-q"]


@pytest.mark.parametrize(
    ("flags", "steps"),
    [(("--steps", "7"), 7), (("--tokens", "1k"), 4), (("--tokens", "2_560"), 10)],
)
def test_steps_and_tokens_are_horizons(
    flags: tuple[str, ...], steps: int, llmtrain: Command
) -> None:
    document = llmtrain(*TRAIN, *flags, "--json").document

    assert (document["steps"], document["tokens"]) == (steps, steps * 256)
    assert document["stopped"] == "done"


def test_layers_in_order(llmtrain: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def steps(*arguments: str) -> int:
        out = f"run-{len(list(Path.cwd().iterdir()))}"
        document = llmtrain("train", "-p", "tiny.yaml", "--out", out, *arguments, "--json").document
        return int(document["steps"])

    assert steps() == 20
    monkeypatch.setenv("LLMTRAIN_TRAIN__STEPS", "4")
    assert steps() == 4
    assert steps("--set", "train.steps=3") == 3
    assert steps("--set", "train.steps=3", "--steps", "2") == 2


def test_unknown_variable_is_an_error(llmtrain: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMTRAIN_TRAIN__STEPZ", "4")
    outcome = llmtrain(*TRAIN)
    assert outcome.code == 2
    assert "LLMTRAIN_TRAIN__STEPZ" in outcome.err
    assert "train.steps" in outcome.err


def test_shown_profile_is_a_profile(llmtrain: Command, place: Path) -> None:
    shown = llmtrain("profiles", "show", "cpu-small").out
    (place / "my.yaml").write_text(shown)

    again = llmtrain("profiles", "show", "my.yaml", "--json").document["profile"]
    assert again == llmtrain("profiles", "show", "cpu-small", "--json").document["profile"]
    outcome = llmtrain("train", "--profile", "my.yaml", "--dry-run")
    assert outcome.code == 0
    assert "micro_batch" in outcome.out
    assert "parameters" in outcome.out


def test_run_without_a_name_goes_under_runs(llmtrain: Command, place: Path) -> None:
    document = llmtrain("train", "-p", "tiny.yaml", "--steps", 2, "--json").document

    (run,) = (place / "runs").iterdir()
    assert document["run"] == str(Path("runs") / run.name)
    assert run.name.startswith("tiny-20")
    assert llmtrain("eval", run.name, "--json").code == 0


def test_summary_ends_with_commands_to_type(llmtrain: Command) -> None:
    outcome = llmtrain(*TRAIN)

    assert outcome.out == ""
    lines = outcome.err.splitlines()
    assert "done after 20 steps" in outcome.err
    assert lines[-2].split()[1:] == ["llmtrain", "eval", "run"]
    assert lines[-1].split()[1:4] == ["llmtrain", "generate", "run"]


def test_progress_is_a_line_a_logged_step(llmtrain: Command) -> None:
    err = llmtrain(*TRAIN).err

    told = [line for line in err.splitlines() if "  loss " in line]
    assert [line.split()[1] for line in told] == ["1/20", "5/20", "10/20", "15/20", "20/20"]
    assert sum("validation loss" in line and "step" in line for line in err.splitlines()) == 2


def test_jsonl_is_trained_on(llmtrain: Command, place: Path) -> None:
    lines = (place / "corpus.txt").read_text().splitlines()
    records = [json.dumps({"body": line, "text": 3}) for line in lines]
    (place / "corpus.jsonl").write_text("\n".join(records))

    flags = ("--data", "corpus.jsonl", "--text-field", "body", "--json")
    assert llmtrain(*TRAIN, *flags).document["stopped"] == "done"


def test_tokenizer_of_another_run_is_used(llmtrain: Command, trained: Path, place: Path) -> None:
    tokenizer = max((trained / "checkpoints").iterdir())
    assert llmtrain(*TRAIN, "--tokenizer", tokenizer, "-q").code == 0
    (newest,) = (place / "run" / "checkpoints").glob("step-00000020")
    for name in ("tokenizer.model", "tokenizer.json"):
        assert (newest / name).read_bytes() == (tokenizer / name).read_bytes()


@pytest.mark.skipif(sys.platform == "win32", reason="directories have no such mode there")
def test_place_that_may_not_be_written_to(llmtrain: Command, place: Path) -> None:
    locked = place / "locked"
    locked.mkdir(mode=0o500)
    try:
        (locked / "probe").touch()
    except PermissionError:
        outcome = llmtrain("train", "-p", "tiny.yaml", "--out", locked / "run")
        assert outcome.code == 2
        assert "cannot be written" in outcome.err
    else:
        pytest.skip("this user may write everywhere")
