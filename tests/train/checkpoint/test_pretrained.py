"""A model directory of transformers: the same logits here, and nothing in it is trusted."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from llmtrain.errors import LlmtrainError, UsageError
from llmtrain.tokenizer import Tokenizer
from llmtrain.train.checkpoint.pretrained import open_pretrained
from llmtrain.train.model_weights import trained_model
from tests.data.fixed import TOKENIZER, fixed_texts
from tests.pretrained import CONTEXT, as_transformers_4, change_config, save_pretrained

SHARDED = "20KB"
VARIANTS: dict[str, dict[str, Any]] = {
    "qwen3": {},
    "qwen3-tied": {"tie_word_embeddings": True},
    "qwen3-sharded-bf16": {"shard_size": SHARDED, "dtype": torch.bfloat16},
    "qwen3-tied-sharded-fp16": {
        "tie_word_embeddings": True,
        "shard_size": SHARDED,
        "dtype": torch.float16,
    },
    "qwen3-wide-heads": {"head_dim": 16},
    "llama": {"form": "llama"},
    "llama-tied": {"form": "llama", "tie_word_embeddings": True},
    "llama-sharded-fp16": {"form": "llama", "shard_size": SHARDED, "dtype": torch.float16},
    "llama-bf16-one-key-head": {
        "form": "llama",
        "dtype": torch.bfloat16,
        "num_key_value_heads": 1,
    },
    "mistral": {"form": "mistral"},
}


@pytest.fixture(scope="module")
def documents() -> list[list[int]]:
    """Twenty documents of a window, as ids."""
    tokenizer = Tokenizer.load(TOKENIZER)
    encoded = (tokenizer.encode(text)[:CONTEXT] for text in fixed_texts())
    return [ids for ids in encoded if len(ids) == CONTEXT][:20]


@torch.no_grad()
def require_equal_logits(directory: Path, documents: list[list[int]]) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    found = open_pretrained(directory)
    ours = trained_model(found.shape, found.read_weights(), str(directory)).eval()
    tokens = torch.tensor(documents)
    assert tokens.shape == (20, CONTEXT)
    logits = ours.logits(tokens)
    assert logits.std() > 0.1
    assert (logits - theirs(tokens).logits).abs().max() <= 1e-4


@pytest.mark.parametrize("config", ["transformers 5", "transformers 4"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_transformers(
    variant: str, config: str, documents: list[list[int]], tmp_path: Path
) -> None:
    save_pretrained(tmp_path, **VARIANTS[variant])
    if config == "transformers 4":
        as_transformers_4(tmp_path)
    is_sharded = "shard_size" in VARIANTS[variant]
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == is_sharded
    require_equal_logits(tmp_path, documents)


def test_a_config_may_leave_out_what_follows_from_the_rest(
    documents: list[list[int]], tmp_path: Path
) -> None:
    save_pretrained(tmp_path, "llama", num_key_value_heads=4)
    change_config(tmp_path, head_dim=None, num_key_value_heads=None, tie_word_embeddings=None)
    require_equal_logits(tmp_path, documents)


def test_old_checkpoints_have_rotary_frequencies(
    documents: list[list[int]], tmp_path: Path
) -> None:
    change_tensors(
        save_pretrained(tmp_path, "llama"),
        **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)},
    )
    found = open_pretrained(tmp_path)
    assert len(found.read_weights()) == 21


def change_tensors(directory: Path, **changes: torch.Tensor | None) -> None:
    file = directory / "model.safetensors"
    tensors = load_file(file) | changes
    save_file({name: t for name, t in tensors.items() if t is not None}, file)


def cut_off(directory: Path) -> None:
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def long_header(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 40) + b"{}")


def overlapping(directory: Path) -> None:
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    header = json.dumps({"a": entry, "b": entry}).encode()
    content = struct.pack("<Q", len(header)) + header + b"\0" * 4
    (directory / "model.safetensors").write_bytes(content)


def eight_bits(directory: Path) -> None:
    change_tensors(directory, **{"model.norm.weight": torch.ones(32, dtype=torch.int8)})


def one_missing(directory: Path) -> None:
    change_tensors(directory, **{"model.norm.weight": None})


def of_another_shape(directory: Path) -> None:
    change_config(directory, intermediate_size=96)


def huge(directory: Path) -> None:
    change_config(directory, num_hidden_layers=2**30)


def config_cut_off(directory: Path) -> None:
    (directory / "config.json").write_text('{"model_type": "qwen3"')


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut off": (cut_off, "its tensors have"),
    "a header of a terabyte": (long_header, "header would have"),
    "overlapping tensors": (overlapping, "gap or overlap"),
    "eight bits": (eight_bits, "I8"),
    "a tensor missing": (one_missing, r"model\.norm\.weight is missing"),
    "another shape": (of_another_shape, r"has shape \[80, 32\]"),
    "a billion layers": (huge, r"layers\.2\.input_layernorm\.weight is missing"),
    "config cut off": (config_cut_off, "config.json cannot be read"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_before_a_tensor_is_read(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_pretrained(tmp_path)
    change, message = DAMAGE[damage]
    change(tmp_path)
    monkeypatch.setattr("llmtrain.train.checkpoint.tensors.safe_open", None)
    with pytest.raises(LlmtrainError, match=message):
        open_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", 7])
def test_an_index_names_files_of_its_directory_only(name: object, tmp_path: Path) -> None:
    save_pretrained(tmp_path, shard_size=SHARDED)
    file = tmp_path / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"]["model.norm.weight"] = name
    file.write_text(json.dumps(index))
    with pytest.raises(LlmtrainError, match="not the name of a shard"):
        open_pretrained(tmp_path)


def test_a_shard_has_what_the_index_says(tmp_path: Path) -> None:
    save_pretrained(tmp_path, shard_size=SHARDED)
    file = tmp_path / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    first, *_, last = sorted(set(index["weight_map"].values()))
    moved = next(name for name, shard in index["weight_map"].items() if shard == first)
    index["weight_map"][moved] = last
    file.write_text(json.dumps(index))
    with pytest.raises(LlmtrainError, match="not in both"):
        open_pretrained(tmp_path)
    (tmp_path / last).unlink()
    with pytest.raises(LlmtrainError, match="cannot be read"):
        open_pretrained(tmp_path)


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UsageError, match=r"pytorch_model\.bin may hold code"):
        open_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.q_proj.bias", "score.weight"])
def test_a_tensor_without_a_place_is_refused(name: str, tmp_path: Path) -> None:
    change_tensors(save_pretrained(tmp_path), **{name: torch.ones(32)})
    with pytest.raises(UsageError, match=name):
        open_pretrained(tmp_path)


def test_a_tied_head_of_its_own_is_refused(tmp_path: Path) -> None:
    save_pretrained(tmp_path, tie_word_embeddings=True)
    embedding = load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"]
    change_tensors(tmp_path, **{"lm_head.weight": embedding.clone()})
    assert "lm_head.weight" not in open_pretrained(tmp_path).read_weights()
    change_tensors(tmp_path, **{"lm_head.weight": embedding + 1})
    with pytest.raises(UsageError, match="tie_word_embeddings"):
        open_pretrained(tmp_path).read_weights()


@pytest.mark.skipif(os.name == "nt", reason="there are no named pipes")
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_pipe_is_not_waited_for(name: str, tmp_path: Path) -> None:
    save_pretrained(tmp_path)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(LlmtrainError):
        open_pretrained(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_links_are_followed_as_in_the_hubs_cache(tmp_path: Path) -> None:
    blobs, snapshot = save_pretrained(tmp_path / "blobs"), tmp_path / "snapshot"
    snapshot.mkdir()
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(file)
    assert open_pretrained(snapshot).shape == open_pretrained(blobs).shape
