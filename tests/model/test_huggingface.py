"""A checkpoint is a Hugging Face model directory: transformers computes what we compute."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from llmtrain.errors import UsageError
from llmtrain.generate.sampling import Sampling
from llmtrain.model.decoder import Decoder
from llmtrain.model.huggingface import config_of, shape_from_config
from llmtrain.profile.shape import ModelShape
from llmtrain.tokenizer import Tokenizer
from llmtrain.train.checkpoint.format import Checkpoint
from llmtrain.train.checkpoint.writing import save_checkpoint
from tests.checkpoints import STATE
from tests.sampled import sampled_ids


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """transformers draws no progress bars."""
    transformers.utils.logging.disable_progress_bar()
    yield
    transformers.utils.logging.enable_progress_bar()


@pytest.fixture
def model(shape: ModelShape, make_model: Callable[[ModelShape], Decoder]) -> Decoder:
    return make_model(shape).eval()


@pytest.fixture
def saved(model: Decoder, tokenizer: Tokenizer, tmp_path: Path) -> Path:
    checkpoint = Checkpoint(STATE, model.state_dict(), {}, model.shape, tokenizer)
    return save_checkpoint(tmp_path, checkpoint)


@torch.no_grad()
def test_transformers_computes_the_same(
    model: Decoder, saved: Path, tokenizer: Tokenizer, documents: list[str]
) -> None:
    foreign, loading = AutoModelForCausalLM.from_pretrained(saved, output_loading_info=True)
    assert not any(loading.values()), loading
    assert foreign.dtype == torch.float32
    context = model.shape.context
    assert len(documents) == 20
    for text in documents:
        ids = tokenizer.encode(text)[:context]
        assert len(ids) == context
        tokens = torch.tensor([ids])
        ours, theirs = model.logits(tokens), foreign(tokens).logits
        assert ours.std() > 0.1
        assert (ours - theirs).abs().max() <= 1e-4

    prompt = tokenizer.encode(documents[0])[:12]
    foreign.generation_config.eos_token_id = None  # ours leaves stopping to the caller
    theirs = foreign.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=20,
        do_sample=False,
    )
    ours = sampled_ids(
        model, prompt, Sampling(temperature=0), num_ids=model.shape.vocab_size, limit=20
    )
    assert theirs[0, len(prompt) :].tolist() == list(ours)


def test_transformers_reads_the_same_ids(
    make_model: Callable[[ModelShape], Decoder],
    small_shape: ModelShape,
    tokenizer: Tokenizer,
    documents: list[str],
    tmp_path: Path,
) -> None:
    weights = make_model(small_shape).state_dict()
    path = save_checkpoint(tmp_path, Checkpoint(STATE, weights, {}, small_shape, tokenizer))
    foreign = AutoTokenizer.from_pretrained(path)
    for text in documents:
        assert foreign(text, verbose=False)["input_ids"] == tokenizer.encode(text)
    assert foreign.model_max_length == small_shape.context
    assert foreign.eos_token_id == tokenizer.separator_id


def test_weights_carry_their_hugging_face_names(model: Decoder) -> None:
    config = transformers.AutoConfig.for_model(**config_of(model.shape, 1, 1))
    with torch.device("meta"):
        foreign = AutoModelForCausalLM.from_config(config)
    ours = {name: p.shape for name, p in model.named_parameters()}
    assert ours == {name: p.shape for name, p in foreign.named_parameters()}


def test_a_shape_survives_its_config(shape: ModelShape) -> None:
    text = json.dumps(config_of(shape, bos_id=1, eos_id=1))
    assert shape_from_config(json.loads(text), "config.json") == shape


def test_every_field_of_a_shape_is_in_the_config(small_shape: ModelShape) -> None:
    """A field that the config forgot would come back as another model."""
    config = config_of(small_shape, 1, 1)
    for field in dataclasses.fields(ModelShape):
        value = getattr(small_shape, field.name)
        other = (not value) if isinstance(value, bool) else value * 2
        assert config_of(dataclasses.replace(small_shape, **{field.name: other}), 1, 1) != config


@pytest.mark.parametrize("change", [{"model_type": "gpt2"}, {"head_dim": None}])
def test_another_model_is_refused(small_shape: ModelShape, change: dict[str, object]) -> None:
    config = config_of(small_shape, 1, 1) | change
    config = {key: value for key, value in config.items() if value is not None}
    with pytest.raises(UsageError, match=r"^here: .*(gpt2|head_dim)"):
        shape_from_config(config, "here")


def test_the_checkpoint_is_readable_without_us(saved: Path, model: Decoder) -> None:
    config = json.loads((saved / "config.json").read_text("utf-8"))
    assert config["architectures"] == [
        "Qwen3ForCausalLM" if model.shape.qk_norm else "LlamaForCausalLM"
    ]
    assert config["rope_parameters"]["rope_theta"] == config["rope_theta"]


def test_a_pipeline_takes_batches(
    make_model: Callable[[ModelShape], Decoder],
    small_shape: ModelShape,
    tokenizer: Tokenizer,
    tmp_path: Path,
) -> None:
    weights = make_model(small_shape).state_dict()
    path = save_checkpoint(tmp_path, Checkpoint(STATE, weights, {}, small_shape, tokenizer))
    texts = ["def", "def f(x): return x", "import"]
    batched, single = (
        pipeline("text-generation", model=str(path), batch_size=size)(
            texts, max_new_tokens=3, do_sample=False
        )
        for size in (2, 1)
    )
    assert batched == single
