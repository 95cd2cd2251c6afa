"""Training that continues a model: from `--init-from` to what a resume needs of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import yaml

from llmtrain.errors import UsageError
from llmtrain.files import sha256_file
from llmtrain.tokenizer import Tokenizer
from llmtrain.train.events import Step
from tests.pretrained import change_config, save_pretrained
from tests.train.harness import Files, InProcessTrainer, Llmtrain


@pytest.fixture
def model(place: Path) -> Path:
    return save_pretrained(place / "model", shard_size="20KB", dtype=torch.bfloat16)


def record_of(run: Path) -> dict[str, object]:
    found: dict[str, object] = yaml.safe_load((run / "run.yaml").read_text())
    return found


def test_twenty_steps_lower_the_loss_and_a_resume_reads_no_model(
    model: Path, place: Path, llmtrain: Llmtrain
) -> None:
    flags = ("--profile", "tiny.yaml", "--init-from", "model", "--out", "run")
    assert llmtrain("train", *flags, "--steps", 20).code == 0
    run = Files(place / "run")
    losses = [line["loss"] for line in run.lines("metrics.jsonl") if "loss" in line]
    assert losses[-1] < losses[0] - 0.1
    record = record_of(run.path)
    initial = record["init_from"]
    assert isinstance(initial, dict)
    assert (initial["spec"], initial["vocab_size"]) == ("model", 512)
    assert initial["sha256"] == {
        path.name: sha256_file(path) for path in model.iterdir() if path.name in initial["sha256"]
    }
    assert len(initial["sha256"]) == 1 + len(list(model.glob("*.safetensors")))
    shutil.rmtree(model)
    assert llmtrain("train", *flags, "--steps", 24, "--resume", "auto").code == 0
    assert record_of(run.path)["init_from"] == initial
    assert len(record_of(run.path)["sessions"]) == 2  # type: ignore[arg-type]


def test_shape_and_tokenizer_are_the_models_and_the_rest_the_profiles(
    model: Path, train: InProcessTrainer, place: Path
) -> None:
    train(place / "run", model__init_from="model", train__steps=1)
    profile = record_of(place / "run")["profile"]
    assert isinstance(profile, dict)
    shape = profile["model"]
    assert (shape["hidden_size"], shape["num_layers"], shape["num_kv_heads"]) == (32, 2, 2)
    assert (shape["rope_theta"], shape["vocab_size"], shape["context"]) == (50_000.0, 512, 32)
    assert profile["optim"]["warmup_steps"] == 5
    saved = Tokenizer.load(Files(place / "run").newest)
    assert saved.fingerprint == Tokenizer.load(model).fingerprint


def test_the_vocabulary_grows_by_reserved_pieces(
    model: Path, train: InProcessTrainer, place: Path
) -> None:
    train(place / "run", model__init_from="model", data__tokenizer_reserve=20, train__steps=1)
    saved = Tokenizer.load(Files(place / "run").newest)
    assert saved.vocab_size == 520
    assert record_of(place / "run")["profile"]["model"]["vocab_size"] == 520  # type: ignore[index]


def test_without_a_profile_the_model_names_the_run(model: Path, llmtrain: Llmtrain) -> None:
    options = ("--data", "corpus.txt", "--steps", 1, "--set", "train.tokens_per_step=240")
    options += ("--device", "cpu", "--set", "device.precision=fp32", "--out", "run")
    options += ("--set", "device.attention=blocks")
    assert llmtrain("train", "--init-from", "model", *options).code == 0
    profile = record_of(Path("run"))["profile"]
    assert isinstance(profile, dict)
    assert (profile["name"], profile["model"]["context"]) == ("model", 48)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"model__hidden_size": 64}, "model.hidden_size is 64"),
        ({"model__qk_norm": False}, "model.qk_norm is False"),
        ({"model__context": 49}, "model.context is 49"),
        ({"data__tokenizer": "other"}, "data.tokenizer is 'other'"),
    ],
)
def test_a_setting_that_contradicts_the_model_is_refused(
    model: Path,
    train: InProcessTrainer,
    place: Path,
    settings: dict[str, object],
    named: str,
) -> None:
    with pytest.raises(UsageError, match=named):
        train(place / "run", model__init_from="model", **settings)
    assert not (place / "run").exists()


def test_an_unsupported_model_is_a_usage_error(model: Path, llmtrain: Llmtrain) -> None:
    change_config(model, attention_bias=True)
    for command in (
        ("train", "--profile", "tiny.yaml", "--init-from", "model"),
        ("eval", "model", "--data", "corpus.txt"),
        ("generate", "model"),
        ("memory", "model"),
    ):
        outcome = llmtrain(*command)
        assert outcome.code == 2
        assert "attention_bias is true" in outcome.err


def test_weights_that_are_not_finite_are_refused(
    model: Path, llmtrain: Llmtrain, place: Path
) -> None:
    from safetensors.torch import load_file, save_file

    shard = sorted(model.glob("*.safetensors"))[0]
    tensors = {name: t * float("nan") for name, t in load_file(shard).items()}
    save_file(tensors, shard)
    outcome = llmtrain("train", "--profile", "tiny.yaml", "--init-from", "model", "--out", "run")
    assert outcome.code == 1
    assert "not finite" in outcome.err
    assert not (place / "run").exists()


def test_a_run_of_ours_is_continued(reference: Files, train: InProcessTrainer, place: Path) -> None:
    train(place / "more", model__init_from=str(reference.path), train__steps=2)
    first = next(event for event in train.events if isinstance(event, Step))
    last = reference.lines("metrics.jsonl")[-2]["loss"]
    assert first.loss < last + 0.5


def test_use_of_a_model_directory(model: Path, llmtrain: Llmtrain) -> None:
    evaluated = llmtrain("eval", "model", "--data", "corpus.txt", "--device", "cpu")
    assert evaluated.code == 0
    assert "bits per byte" in evaluated.out
    assert llmtrain("eval", "model").code == 2  # which text is not known
    generated = llmtrain("generate", "model", "--prompt", "ab", "--max-tokens", 4)
    assert generated.code == 0
    assert generated.out.startswith("ab")


def test_memory_of_a_model_directory(model: Path, llmtrain: Llmtrain) -> None:
    quick = ("--device", "cpu", "--set", "device.precision=fp32", "--set", "device.compile=false")
    outcome = llmtrain("memory", "model", "--set", "device.attention=blocks", *quick)
    assert outcome.code == 0
    assert "generation of the trained model" in outcome.out
