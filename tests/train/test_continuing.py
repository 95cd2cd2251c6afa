"""Training that continues a model: from `--init-from` to what a resume needs of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import transformers
import yaml

from llmtrain.engine.inference import generate_texts, load_trained
from llmtrain.errors import UsageError
from llmtrain.files import sha256_file
from llmtrain.generate.sampling import Sampling
from llmtrain.generate.text import TextRequest
from llmtrain.profile.schema import DeviceSection
from llmtrain.tokenizer import Tokenizer
from llmtrain.tokenizer.of_model import tokenizer_of_model
from llmtrain.train.events import Step
from tests.foreign import STYLES
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


@pytest.mark.parametrize("name", STYLES)
def test_greedy_texts_are_those_of_transformers(name: str, place: Path) -> None:
    """With what begins a prompt, and to where a text ends."""
    style = STYLES[name]()
    directory = style.save(place / "model")
    trained = load_trained(
        "model", DeviceSection(kind="cpu", precision="fp32", threads=1), lambda event: None
    )
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory)
    tokens = transformers.AutoTokenizer.from_pretrained(directory)
    for prompt in ("a cab", "the theory of b"):
        given = tokens(prompt, return_tensors="pt")
        with torch.no_grad():
            logits_v = theirs(given["input_ids"]).logits[0, -1]
            taken = theirs.generate(**given, max_new_tokens=12, do_sample=False)
        ids_bt = torch.tensor([trained.tokenizer.prompt_ids(trained.tokenizer.encode(prompt))])
        assert torch.equal(ids_bt, given["input_ids"])
        with torch.no_grad():
            ours_v = trained.model.logits(ids_bt)[0, -1]
        assert (ours_v - logits_v).abs().max() < 1e-4
        request = TextRequest(prompt, Sampling(0.0), 12)
        *_, (_, _, stream) = generate_texts(trained, [request], lambda event: None, lambda: None)
        assert stream.continuation.sampled == taken[0, ids_bt.shape[1] :].tolist()


@pytest.mark.parametrize("name", STYLES)
def test_a_continued_model_begins_and_ends_texts_as_before(
    name: str, place: Path, llmtrain: Llmtrain
) -> None:
    directory = STYLES[name]().save(place / "model")
    before, _ = tokenizer_of_model(directory)
    flags = ("--profile", "tiny.yaml", "--init-from", "model", "--out", "run", "--steps", 1)
    assert llmtrain("train", *flags).code == 0
    checkpoint = Files(place / "run").newest
    assert Tokenizer.load(checkpoint).kind == before.kind
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    exported = llmtrain("export", "run", "--format", "hf", "--out", "hf")
    assert exported.code == 0, exported.err  # it is verified, with what begins prompts
    for path in (checkpoint, place / "hf"):
        again = transformers.AutoTokenizer.from_pretrained(path)
        assert again("a cab")["input_ids"] == theirs("a cab")["input_ids"]
        assert (again.bos_token, again.eos_token) == (theirs.bos_token, theirs.eos_token)
        config = transformers.AutoConfig.from_pretrained(path)
        assert (config.bos_token_id, config.eos_token_id) == (before.bos_id, before.eos_id)
        stops = transformers.GenerationConfig.from_pretrained(path).eos_token_id
        assert {*([stops] if isinstance(stops, int) else stops)} == before.stop_ids
    if name == "mistral":
        return  # llama.cpp reads no tokenizer.json of pieces
    gguf = pytest.importorskip("gguf")
    assert llmtrain("export", "run", "--format", "gguf", "--out", "gguf").code == 0
    reader = gguf.GGUFReader(next((place / "gguf").glob("*.gguf")))
    fields = {key: field.contents() for key, field in reader.fields.items()}
    assert fields.get("tokenizer.ggml.bos_token_id") == before.bos_id
    assert fields["tokenizer.ggml.eos_token_id"] == before.eos_id
    assert fields["tokenizer.ggml.add_bos_token"] == before.adds_bos
    assert fields["tokenizer.ggml.eot_token_id"] in before.stop_ids
