"""`eval --tasks`, and the harness' own model beside ours."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

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
    "cloze": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{choices[0]}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}],
    },
    "bits": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
}


def write_tasks(place: Path) -> list[str]:
    """Three tasks on local files."""
    lines = (place / "corpus.txt").read_text().splitlines()
    rows = [
        {
            "question": lines[n][:20],
            "choices": [lines[n][20:24], lines[n + 1][:4], lines[n + 2][:4]],
            "answer": 0,
            "text": "\n".join(lines[10 * n : 10 * n + 25]),
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
    # Processes that are forked beside torch's threads may never end.
    monkeypatch.setattr("multiprocessing.Pool", lambda *_: pytest.fail("forks processes"))
    files = write_tasks(place)
    document = llmtrain("eval", "a", *files, "--json").document
    scores = {(each["task"], each["metric"]): each for each in document["tasks"]}
    choice, bits = scores["choice", "acc"], scores["bits", "bits_per_byte"]
    assert choice["chance"] == pytest.approx(1 / 3)
    assert (choice["examples"], bits["chance"]) == (20, None)
    saved = json.loads((run / "tasks.json").read_text())
    assert [each["score"]["task"] for each in saved] == [*("choice", "cloze", "cloze", "bits")]

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
    assert theirs["cloze"]["acc,none"] == scores["cloze", "acc"]["value"]
    for task, metric in (("cloze", "perplexity"), ("bits", "bits_per_byte")):
        ours = scores[task, metric]["value"]
        assert math.isclose(theirs[task][f"{metric},none"], ours, rel_tol=1e-4), task
    assert_bits_are_ours(llmtrain, place, bits["value"])


def assert_bits_are_ours(llmtrain: Command, place: Path, value: float) -> None:
    """`eval` needs as many bits for the texts of the task as the harness says."""
    rows = [json.loads(line) for line in (place / "rows.jsonl").read_text().splitlines()]
    texts = "".join(json.dumps({"text": row["text"]}) + "\n" for row in rows)
    (place / "texts.jsonl").write_text(texts)
    document = llmtrain("eval", "a", "--data", "texts.jsonl", "--json").document
    assert math.isclose(document["bits_per_byte"], value, rel_tol=0.005)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["python_brackets", "python_identifiers"])
def test_a_model_with_random_weights_is_at_chance(
    task: str, llmtrain: Command, run: Path, place: Path
) -> None:
    path = run / "checkpoints" / "step-00000020"
    model = shutil.copytree(path, place / "random")
    for name in ("manifest.json", "state.json", "optimizer.safetensors"):
        (model / name).unlink()  # a directory of a model, and no longer a checkpoint
    randomize(model / "model.safetensors")
    outcome = llmtrain("eval", model, "--tasks", task, "--json")
    (accuracy,) = [each for each in outcome.document["tasks"] if each["metric"] == "acc"]
    assert accuracy["examples"] == 240
    assert accuracy["chance"] == pytest.approx(1 / 3 if task == "python_brackets" else 1 / 4)
    assert abs(accuracy["value"] - accuracy["chance"]) <= 2 * accuracy["standard_error"]


def randomize(path: Path) -> None:
    """Replace matrices by random ones of the size that training begins with."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(tensor.shape, generator=generator).to(tensor.dtype) * 0.02
        if tensor.ndim > 1
        else tensor
        for name, tensor in load_file(path).items()
    }
    save_file(tensors, path, {"format": "pt"})


@pytest.mark.slow
def test_an_unknown_task_is_refused(llmtrain: Command, run: Path) -> None:
    outcome = llmtrain("eval", "a", "--tasks", "no_such_task")
    assert (outcome.code, "no such task" in outcome.err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("a", "b", "--tasks", "python_brackets"), "evaluates one model"),
        (("a", "--tasks", "python_brackets", "--max-bpb", 1), "evaluates one model"),
        (("a", "--limit", 3), "--limit 3 limits the questions"),
    ],
)
def test_what_does_not_go_together_is_refused(
    arguments: tuple[object, ...], complaint: str, llmtrain: Command, run: Path
) -> None:
    outcome = llmtrain("eval", *arguments)
    assert (outcome.code, complaint in outcome.err) == (2, True)
