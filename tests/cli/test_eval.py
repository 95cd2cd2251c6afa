"""`eval --tasks`, and the harness' own model beside ours."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest

from llmtrain.profile.schema import DeviceSection
from tests.cli.conftest import Command

TASKS = {
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    },
    "bits": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
}


def write_tasks(place: Path) -> list[str]:
    """Two tasks on local files."""
    lines = (place / "corpus.txt").read_text().splitlines()
    rows = [
        {
            "question": lines[n][:20],
            "choices": [lines[n][20:24], lines[n + 1][:4], lines[n + 2][:4]],
            "answer": 0,
            "text": "\n".join(lines[n : n + 3]),
        }
        for n in range(0, 60, 3)
    ]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = []
    for name, values in TASKS.items():
        data = {"data_files": {"test": str(place / "rows.jsonl")}}
        common = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": data,
            "test_split": "test",
        }
        (place / f"{name}.yaml").write_text(json.dumps(common | values))
        files += ["--tasks", f"{name}.yaml"]
    return files


@pytest.fixture
def run(trained: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that scores may be saved in, and a cache of data sets that is not the user's."""
    pytest.importorskip("lm_eval")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", place / "cache")
    return shutil.copytree(trained, place / "runs" / "a")


@pytest.mark.slow
def test_tasks_are_scored_saved_and_equal_to_the_harness_own_model(
    llmtrain: Command, run: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = DeviceSection(kind="cpu", precision="fp32")  # as theirs: near ties differ in bf16
    monkeypatch.setattr("llmtrain.cli.options.device_section", lambda *_: exact)
    files = write_tasks(place)
    document = llmtrain("eval", "a", *files, "--json").document
    scores = {(each["task"], each["metric"]): each for each in document["tasks"]}
    choice, bits = scores["choice", "acc"], scores["bits", "bits_per_byte"]
    assert choice["chance"] == pytest.approx(1 / 3)
    assert (choice["examples"], bits["chance"]) == (20, None)
    saved = json.loads((run / "tasks.json").read_text())
    assert [each["score"]["task"] for each in saved] == ["choice", "bits"]

    import lm_eval
    from lm_eval.models.huggingface import HFLM

    model = HFLM(
        pretrained=str(run / "checkpoints" / "step-00000020"), device="cpu", dtype="float32"
    )
    configurations = [json.loads((place / f"{name}.yaml").read_text()) for name in TASKS]
    theirs = lm_eval.simple_evaluate(
        model, tasks=configurations, log_samples=False, bootstrap_iters=0
    )["results"]
    assert theirs["choice"]["acc,none"] == choice["value"]
    assert math.isclose(theirs["bits"]["bits_per_byte,none"], bits["value"], rel_tol=0.005)


@pytest.mark.slow
def test_a_model_that_knows_nothing_is_at_chance(llmtrain: Command, run: Path) -> None:
    outcome = llmtrain("eval", "a", "--tasks", "python_brackets", "--limit", 100, "--json")
    assert outcome.err == ""
    (accuracy,) = [each for each in outcome.document["tasks"] if each["metric"] == "acc"]
    assert accuracy["examples"] == 100
    assert accuracy["chance"] == pytest.approx(1 / 3)


@pytest.mark.slow
def test_an_unknown_task_is_refused(llmtrain: Command, run: Path) -> None:
    outcome = llmtrain("eval", "a", "--tasks", "no_such_task")
    assert (outcome.code, "no such task" in outcome.err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("a", "b", "--tasks", "python_brackets"), "evaluates one model"),
        (("a", "--tasks", "python_brackets", "--max-bpb", 1), "evaluates one model"),
        (("a", "--limit", 3), "--limit limits the questions"),
    ],
)
def test_what_does_not_go_together_is_refused(
    arguments: tuple[object, ...], complaint: str, llmtrain: Command, run: Path
) -> None:
    outcome = llmtrain("eval", *arguments)
    assert (outcome.code, complaint in outcome.err) == (2, True)
