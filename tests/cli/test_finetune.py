"""`llmtrain finetune`: a model learns to answer, resumes exactly, and is used as any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llmtrain.engine.open_model import open_model
from llmtrain.files import sha256_file
from llmtrain.tokenizer.chat_template import ChatTemplate
from tests.cli.conftest import Command
from tests.pretrained import save_pretrained

SMALL = (
    *("--set", "model.context=48", "--set", "train.tokens_per_step=192"),
    *("--set", "eval.every_steps=4", "--set", "eval.sample_every_steps=4"),
    *("--set", "eval.sample_tokens=4", "--set", "device.attention=blocks"),
    *("--set", "device.precision=fp32", "--set", "device.compile=false"),
    *("--set", "device.threads=1", "--force-cpu"),
)


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model to fine-tune and conversations, in the working directory."""
    monkeypatch.chdir(tmp_path)
    rows = [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "ab"}]}
        for n in range(60)
    ]
    Path("chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return save_pretrained(tmp_path / "base", initializer_range=0.05)


def digests(run: str) -> dict[str, str]:
    newest = max(Path(run, "checkpoints").glob("step-????????"))
    return {file.name: sha256_file(file) for file in newest.glob("*.safetensors")}


def metrics(run: str) -> list[dict[str, Any]]:
    lines = map(json.loads, Path(run, "metrics.jsonl").read_text().splitlines())
    keys = ("step", "tokens", "loss", "lr", "grad_norm", "val_loss", "val_bpb")
    return [{key: line[key] for key in keys if key in line} for line in lines]


@pytest.mark.parametrize("lora", [(), ("--lora", "r=2,alpha=4,targets=q_proj+down_proj")])
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(
    base: Path, llmtrain: Command, lora: tuple[str, ...]
) -> None:
    start = ("finetune", "base", "--data", "chat.jsonl", *lora, *SMALL)
    once = (*start, "--set", "checkpoint.every_steps=3", "--out")
    schedule = ("--set", "optim.schedule=wsd", "--set", "optim.decay_fraction=0")
    assert llmtrain(*once, "whole", *schedule, "--steps", 8).code == 0
    assert llmtrain(*once, "parts", *schedule, "--steps", 5).code == 0
    assert llmtrain(*once, "parts", *schedule, "--steps", 8, "--resume", "auto").code == 0
    assert digests("parts") == digests("whole")
    by_step = {(m["step"], "val_loss" in m): m for m in metrics("parts")}
    for line in metrics("whole"):
        assert by_step[line["step"], "val_loss" in line] == line
    assert metrics("whole")[-1]["val_loss"] < metrics("whole")[0]["loss"]


def test_adapters_are_beside_the_model_and_merged_where_it_is_used(
    base: Path, llmtrain: Command
) -> None:
    before = {file.name: sha256_file(file) for file in base.iterdir()}
    done = llmtrain(
        *("finetune", "base", "--data", "chat.jsonl", "--lora", "r=4", "--out", "run"),
        *(*SMALL, "--steps", 8, "--set", "optim.learning_rate=0.02", "--json"),
    )
    assert done.code == 0
    assert {file.name: sha256_file(file) for file in base.iterdir()} == before
    newest = max(Path("run/checkpoints").glob("step-????????"))
    assert not (newest / "model.safetensors").exists()
    assert newest.joinpath("adapter_model.safetensors").stat().st_size < 60_000
    opened, original = open_model("run", print), open_model("base", print)
    assert opened.shape.vocab_size == original.shape.vocab_size
    changed = [n for n, w in original.weights.items() if not torch.equal(w, opened.weights[n])]
    assert len(changed) == 2 * 7
    evaluated = llmtrain("eval", "run", "--force-cpu", "--json").document
    assert evaluated["loss_nats_per_token"] == pytest.approx(done.document["val_loss"], rel=2e-3)
    assert evaluated["answers"]["questions"] > 0
    assert llmtrain("runs", "verify", "run").code == 0
    exporting = ("--format", "hf", "--out", "whole", "--no-verify")
    assert llmtrain("export", "run", *exporting).code == 0
    exported = open_model("whole", print)
    assert exported.tokenizer.chat == opened.tokenizer.chat
    assert all(torch.equal(exported.weights[n], w) for n, w in opened.weights.items())
    stops = json.loads(Path("whole/generation_config.json").read_text())["eos_token_id"]
    assert {*stops} == ChatTemplate.of(exported.tokenizer).stop_ids
    again = llmtrain("finetune", "run", "--data", "chat.jsonl", *SMALL, "--steps", 1)
    assert again.code == 2
    assert "adapters" in again.err


def test_a_fine_tuned_run_answers_and_keeps_its_template(base: Path, llmtrain: Command) -> None:
    """The data has one answer, which a model learns in a few steps."""
    flags = ("--epochs", 12, "--set", "optim.learning_rate=0.01", "--out", "run")
    done = llmtrain("finetune", "base", "--data", "chat.jsonl", *SMALL, *flags, "--json")
    assert done.code == 0
    evaluated = llmtrain("eval", "run", "--force-cpu", "--json").document
    assert evaluated["answers"]["share"] == 1.0
    other = [{"prompt": "other?", "completion": "ab"}, {"prompt": "?", "completion": "cd"}]
    Path("other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in other))
    more = llmtrain("eval", "run", "--force-cpu", "--data", "other.jsonl", "--json").document
    assert (more["answers"]["questions"], more["answers"]["exact"]) == (2, 1)
    none = llmtrain("eval", "run", "--force-cpu", "--questions", 0, "--json").document
    assert none["answers"] is None
    newest = max(Path("run/checkpoints").glob("step-????????"))
    template = ChatTemplate.load(newest)
    assert template.marks_answers
    samples = [json.loads(line) for line in Path("run/samples.jsonl").read_text().splitlines()]
    assert samples[-1]["text"] == "ab"


def test_a_dry_run_trains_nothing(base: Path, llmtrain: Command) -> None:
    flags = ("--data", "chat.jsonl", "--lora", "r=2", *SMALL, "--dry-run")
    shown = llmtrain("finetune", "base", *flags, "--json").document
    assert shown["profile"]["value"] == "finetune-cpu"
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        ((), 2, "no model is named"),
        (("base", "--dry-run", "--max-loss", "2"), 2, "--dry-run trains nothing"),
        (("base", "--lora", "rank=3"), 2, "rank=3"),
        (("base", "--lora", "r=x"), 2, "not a number"),
        (("base", "--lora", "r=0"), 2, "lora.rank"),
        (("base", "--lora", "targets=lm_head"), 2, "lora.targets"),
        (("base", "--lora", "r=2", "--set", "optim.name=muon"), 2, "adamw"),
        (("base", "--data", "missing.jsonl"), 5, "missing.jsonl"),
        (("base", "--data", "builtin:python"), 5, "no conversations"),
        (("nowhere",), 2, "nowhere"),
    ],
)
def test_what_cannot_be_is_refused(
    base: Path, llmtrain: Command, flags: tuple[str, ...], code: int, said: str
) -> None:
    data = () if "--data" in flags else ("--data", "chat.jsonl")
    found = llmtrain("finetune", *flags, *data, *SMALL, "--steps", 1)
    assert (found.code, said in found.err) == (code, True), found.err


def test_a_row_that_the_template_refuses_is_named(base: Path, llmtrain: Command) -> None:
    (base / "chat_template.jinja").write_text("{{ raise_exception('no tools') }}")
    found = llmtrain("finetune", "base", "--data", "chat.jsonl", *SMALL, "--steps", 1)
    assert found.code == 5
    assert "chat.jsonl:1" in found.err
    assert "no tools" in found.err


def test_conversations_need_a_model(base: Path, llmtrain: Command) -> None:
    found = llmtrain("train", "--profile", "finetune-cpu", "--data", "chat.jsonl", *SMALL)
    assert found.code == 2
    assert "llmtrain finetune" in found.err


def test_data_inspect_shows_what_carries_loss(base: Path, llmtrain: Command) -> None:
    shown = llmtrain("data", "inspect", "--chat", "base", "--data", "chat.jsonl")
    assert shown.code == 0
    assert "[[ab<|reserved_1|>]]" in shown.out
    document = llmtrain(
        "data", "inspect", "--chat", "base", "--data", "chat.jsonl", "--json"
    ).document
    assert document["conversations"] == 60
    Path("bad.jsonl").write_text('{"messages": [{"role": "user", "content": "a"}]}\n')
    refused = llmtrain("data", "inspect", "--chat", "base", "--data", "bad.jsonl")
    assert refused.code == 5
    assert "bad.jsonl:1" in refused.err
    both = ("--chat", "base", "--tokenizer", "base", "--data", "chat.jsonl")
    assert llmtrain("data", "inspect", *both).code == 2
