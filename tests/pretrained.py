"""Model directories as transformers saves them, with random weights and a fixed tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers

from llmtrain.tokenizer import Tokenizer
from tests.data.fixed import TOKENIZER

CONTEXT = 48
SMALL: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": CONTEXT,
    "rope_parameters": {"rope_type": "default", "rope_theta": 50_000.0},
    "initializer_range": 0.2,  # so that each weight shows in the logits
}
_CONFIGS = {
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
}


def save_pretrained(
    directory: Path,
    form: str = "qwen3",
    *,
    dtype: torch.dtype = torch.float32,
    shard_size: str = "1GB",
    **changes: Any,
) -> Path:
    """Save a random model of the form to `directory`, with a tokenizer; return the directory."""
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    kind, model = _CONFIGS[form]
    own = {"sliding_window": None} if form == "mistral" else {}
    built = model(kind(**(SMALL | own | changes)))
    with torch.no_grad():
        for name, weight in built.named_parameters():
            if "norm" in name:  # gains of one would hide a norm that is left out
                weight.uniform_(0.5, 1.5)
    built.to(dtype).save_pretrained(directory, max_shard_size=shard_size)
    transformers.utils.logging.enable_progress_bar()
    Tokenizer.load(TOKENIZER).save(directory)
    return directory


def change_config(directory: Path, **changes: Any) -> None:
    """Change keys of config.json; None removes one."""
    file = directory / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def as_transformers_4(directory: Path) -> None:
    """Write config.json as transformers 4 did: rope_theta at the top, torch_dtype."""
    config = json.loads((directory / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config |= {"rope_theta": rope["rope_theta"], "rope_scaling": None}
    config["torch_dtype"] = config.pop("dtype", None)
    (directory / "config.json").write_text(json.dumps(config))
