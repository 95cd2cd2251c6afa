"""Write a Hugging Face directory: config, tokenizer, and weights in fp32, bf16 or fp16."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from llmtrain.export.encoding import Encoding
from llmtrain.export.provenance import Provenance
from llmtrain.files import write_json
from llmtrain.model.huggingface import config_of, generation_config_of, weight_shapes
from llmtrain.profile.shape import ModelShape
from llmtrain.tokenizer import Tokenizer
from llmtrain.tokenizer.chat_template import stop_ids_of

WEIGHTS, CHAT_TEMPLATE = "model.safetensors", "chat_template.jinja"
_TYPES = {
    "f32": (torch.float32, "F32", "float32"),
    "f16": (torch.float16, "F16", "float16"),
    "bf16": (torch.bfloat16, "BF16", "bfloat16"),
}
_HEADER_ALIGNMENT = 8


def write_directory(
    directory: Path,
    weights: Mapping[str, Tensor],
    shape: ModelShape,
    tokenizer: Tokenizer,
    provenance: Provenance,
    encoding: Encoding,
    check_stop: Callable[[], None],
) -> None:
    """Write a model into `directory`, which exists."""
    bos_id, eos_id = tokenizer.bos_id, tokenizer.eos_id
    config = config_of(shape, bos_id, eos_id) | {"dtype": _TYPES[encoding][2]}
    write_json(directory / "config.json", config)
    generation = generation_config_of(bos_id, eos_id, stop_ids_of(tokenizer))
    write_json(directory / "generation_config.json", generation)
    tokenizer.save(directory, model_max_length=shape.context)
    if provenance.chat_template is not None:
        text = provenance.chat_template
        (directory / CHAT_TEMPLATE).write_text(text, encoding="utf-8", newline="\n")
    _write_weights(directory / WEIGHTS, weights, shape, encoding, check_stop)


def _write_weights(
    path: Path,
    weights: Mapping[str, Tensor],
    shape: ModelShape,
    encoding: Encoding,
    check_stop: Callable[[], None],
) -> None:
    """Write a safetensors file, converting one tensor at a time."""
    dtype, name, _ = _TYPES[encoding]
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for weight, dims in weight_shapes(shape):
        start, end = end, end + dtype.itemsize * math.prod(dims)
        entries[weight] = {"dtype": name, "shape": list(dims), "data_offsets": [start, end]}
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % _HEADER_ALIGNMENT)
    with path.open("xb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for weight, _ in weight_shapes(shape):
            check_stop()
            values = weights[weight].detach().cpu().to(dtype).contiguous()
            file.write(values.view(torch.uint8).numpy().data)


def read_weights(directory: Path) -> Iterator[tuple[str, np.ndarray[Any, np.dtype[np.float32]]]]:
    """Yield the name and the fp32 values of every weight in a directory."""
    with safe_open(directory / WEIGHTS, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - it is no mapping
            yield name, file.get_tensor(name).float().numpy()
