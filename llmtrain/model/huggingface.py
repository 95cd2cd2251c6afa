"""A shape as Hugging Face's config.json says it, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmtrain.errors import UsageError
from llmtrain.profile.shape import ModelShape

_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "context": "max_position_embeddings",
    "rope_theta": "rope_theta",
    "norm_epsilon": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
}


def config_of(shape: ModelShape, separator_id: int) -> dict[str, Any]:
    """config.json of a Qwen3 model, or of a Llama model where queries are not normed."""
    architecture, kind = (
        ("Qwen3ForCausalLM", "qwen3") if shape.qk_norm else ("LlamaForCausalLM", "llama")
    )
    values = {theirs: getattr(shape, ours) for ours, theirs in _KEYS.items()}
    return {
        "architectures": [architecture],
        "model_type": kind,
        **values,
        # transformers 5 reads rope_parameters, everything older reads rope_theta
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": separator_id,
        "eos_token_id": separator_id,
        "dtype": "float32",
        **({} if shape.qk_norm else {"mlp_bias": False}),
    }


def generation_config_of(separator_id: int) -> dict[str, Any]:
    """generation_config.json: sampling stops at the separator."""
    return {"bos_token_id": separator_id, "eos_token_id": separator_id, "do_sample": True}


def shape_from_config(config: Mapping[str, Any], origin: str) -> ModelShape:
    """The shape that `config_of` wrote. Raises UsageError for any other model."""
    kind = config.get("model_type")
    if kind not in ("qwen3", "llama"):
        raise UsageError(f"{origin}: model_type {kind!r} is not one that llmtrain writes")
    missing = [theirs for theirs in _KEYS.values() if theirs not in config]
    if missing:
        raise UsageError(f"{origin}: {', '.join(missing)} missing")
    values = {ours: config[theirs] for ours, theirs in _KEYS.items()}
    return ModelShape(**values, qk_norm=kind == "qwen3")
