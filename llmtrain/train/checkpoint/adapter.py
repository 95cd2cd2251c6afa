"""Adapters on the disk, in PEFT's layout, and the model that they are beside.

    adapter_config.json         what PEFT reads
    adapter_model.safetensors   A and B of every adapted matrix
    base_model.json             the directory of the model, and the sha256 of its files

A checkpoint of adapters has these in place of the model's weights, which are not written again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel as Document
from pydantic import ConfigDict, TypeAdapter
from torch import Tensor

from llmtrain.errors import LlmtrainError
from llmtrain.files import write_json
from llmtrain.model.huggingface import EMBEDDING, HEAD, weight_shapes
from llmtrain.model.lora import adapter_shapes, merged_weights
from llmtrain.profile.lora_shape import TARGETS, LoraShape
from llmtrain.profile.shape import ModelShape
from llmtrain.train.checkpoint.pretrained import open_pretrained
from llmtrain.train.checkpoint.tensors import read_tensors, write_tensors
from llmtrain.untrusted import read_json

ADAPTER = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
BASE = "base_model.json"
_PREFIX = "base_model.model."  # of names in PEFT's files


class _BaseDocument(Document):
    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    sha256: dict[str, str]


class _LoraDocument(Document):
    """The keys of adapter_config.json that are read."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    r: int
    lora_alpha: float
    target_modules: list[str]


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A model directory, and the hashes of its config.json and of its files with weights."""

    path: Path
    sha256: Mapping[str, str]

    def tensors(self, rows: int) -> Iterator[tuple[str, Tensor]]:
        """Yield the name and the weights of each tensor, with `rows` embedding rows.

        They are in the type that the files have, and of their memory map; those with rows that are
        added are in fp32. Raises LlmtrainError if they are gone or are not what they were.
        """
        directory = open_pretrained(self.path)
        changed = [
            name for name, digest in directory.sha256().items() if self.sha256.get(name) != digest
        ]
        if changed:
            raise LlmtrainError(
                f"{self.path / changed[0]} has changed since a run began with it",
                hint="put back what it was, or start a new run with another --out",
            )
        for name, tensor in directory.stored_tensors():
            is_vocabulary = name in (EMBEDDING, HEAD)
            yield name, with_distinct_rows(tensor, rows) if is_vocabulary else tensor


@dataclass(frozen=True, slots=True)
class Adapter:
    """Adapters, and what they are beside."""

    lora: LoraShape
    base: BaseModel

    def merged(self, weights: Mapping[str, Tensor], shape: ModelShape) -> dict[str, Tensor]:
        """Return the model's weights with the adapters' `weights` added. Raises LlmtrainError."""
        whole = {name: each.float() for name, each in self.base.tensors(shape.vocab_size)}
        return merged_weights(whole, weights, self.lora)


def with_distinct_rows(matrix: Tensor, rows: int) -> Tensor:
    """Return a matrix of embeddings with `rows` rows.

    Rows that are added are drawn as the others are distributed, each by itself: they stay as they
    are in training, and a token that looks like another could not be told from it.
    """
    if len(matrix) >= rows:
        return matrix
    matrix = matrix.float()
    generator = torch.Generator().manual_seed(len(matrix))
    drawn = torch.randn(rows - len(matrix), matrix.shape[1], generator=generator)
    return torch.cat([matrix, matrix.mean(dim=0) + drawn * matrix.std(dim=0)])


def write_adapter(directory: Path, adapter: Adapter, weights: Mapping[str, Tensor]) -> None:
    """Write the three files into `directory`."""
    named = {_PREFIX + name: tensor for name, tensor in weights.items()}
    write_tensors(directory / ADAPTER, named)
    write_json(directory / ADAPTER_CONFIG, _peft_config(adapter))
    base = {"path": str(adapter.base.path), "sha256": dict(adapter.base.sha256)}
    write_json(directory / BASE, base)


def read_adapter(directory: Path, shape: ModelShape) -> tuple[Adapter, dict[str, Tensor]]:
    """Return the adapter in `directory` and its tensors. Raises OSError and ValueError."""
    base = TypeAdapter(_BaseDocument).validate_python(read_json(directory / BASE))
    found = TypeAdapter(_LoraDocument).validate_python(read_json(directory / ADAPTER_CONFIG))
    if found.r < 1 or not {*found.target_modules} <= TARGETS.keys():
        raise ValueError(f"{ADAPTER_CONFIG} describes no adapters of linear layers")
    lora = LoraShape(found.r, found.lora_alpha, tuple(found.target_modules))
    named = read_tensors(directory / ADAPTER)
    weights = {name.removeprefix(_PREFIX): tensor for name, tensor in named.items()}
    expected = adapter_shapes(dict(weight_shapes(shape)), lora)
    if {name: tuple(tensor.shape) for name, tensor in weights.items()} != expected:
        raise ValueError(f"{ADAPTER} has other tensors than {ADAPTER_CONFIG} describes")
    return Adapter(lora, BaseModel(Path(base.path), base.sha256)), weights


def _peft_config(adapter: Adapter) -> dict[str, Any]:
    lora = asdict(adapter.lora)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(adapter.base.path),
        "r": lora["rank"],
        "lora_alpha": lora["alpha"],
        "target_modules": list(lora["targets"]),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
