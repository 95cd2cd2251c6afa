"""Convert a model shape to Hugging Face's config.json, and back."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from llmtrain.errors import UsageError
from llmtrain.profile.requirements import requirement
from llmtrain.profile.schema import ModelSection
from llmtrain.profile.shape import ModelShape, shape_of

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
KEYS = {
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


def config_of(shape: ModelShape, bos_id: int | None, eos_id: int) -> dict[str, Any]:
    """Return the config.json of a Qwen3 model, or of a Llama model without query norms."""
    architecture, kind = (
        ("Qwen3ForCausalLM", "qwen3") if shape.qk_norm else ("LlamaForCausalLM", "llama")
    )
    values = {key: getattr(shape, field) for field, key in KEYS.items()}
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
        "bos_token_id": bos_id,
        "eos_token_id": eos_id,
        "dtype": "float32",
        **({} if shape.qk_norm else {"mlp_bias": False}),
    }


def generation_config_of(
    bos_id: int | None, eos_id: int, stop_ids: Collection[int] = ()
) -> dict[str, Any]:
    """Return the generation_config.json; sampling stops at eos and at `stop_ids`."""
    others = sorted({*stop_ids} - {eos_id})
    stops = [eos_id, *others] if others else eos_id
    return {"bos_token_id": bos_id, "eos_token_id": stops, "do_sample": True}


def shape_from_config(config: object, origin: str) -> ModelShape:
    """Return the shape in a config.json written by `config_of`. Raises UsageError."""
    if not isinstance(config, Mapping):
        raise UsageError(f"{origin} is not an object")
    kind = config.get("model_type")
    if kind not in ("qwen3", "llama"):
        raise UsageError(f"{origin}: model_type {kind!r} is not one that llmtrain writes")
    missing = [key for key in KEYS.values() if key not in config]
    if missing:
        raise UsageError(f"{origin}: {', '.join(missing)} missing")
    auto = [key for key in KEYS.values() if config[key] == "auto"]
    if auto:
        raise UsageError(f"{origin}: {auto[0]} is not a number")
    return shape_from_values(config, origin, qk_norm=kind == "qwen3")


def shape_from_values(values: Mapping[str, Any], origin: str, *, qk_norm: bool) -> ModelShape:
    """Return the shape of values by Hugging Face's keys, all of them. Raises UsageError."""
    ours = {field: values[key] for field, key in KEYS.items()}
    try:
        return shape_of(ModelSection.model_validate({**ours, "qk_norm": qk_norm}))
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(KEYS[str(part)] + ": " for part in first["loc"][:1])
        raise UsageError(f"{origin}: {where}{requirement(first)}") from None


def weight_shapes(shape: ModelShape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the Hugging Face name and dimensions of every weight."""
    width, inner = shape.hidden_size, shape.intermediate_size
    yield EMBEDDING, (shape.vocab_size, width)
    for layer in range(shape.num_layers):
        block = f"model.layers.{layer}."
        yield block + "input_layernorm.weight", (width,)
        yield block + "post_attention_layernorm.weight", (width,)
        yield block + "self_attn.q_proj.weight", (shape.attention_width, width)
        yield block + "self_attn.k_proj.weight", (shape.kv_width, width)
        yield block + "self_attn.v_proj.weight", (shape.kv_width, width)
        yield block + "self_attn.o_proj.weight", (width, shape.attention_width)
        if shape.qk_norm:
            yield block + "self_attn.q_norm.weight", (shape.head_dim,)
            yield block + "self_attn.k_norm.weight", (shape.head_dim,)
        yield block + "mlp.gate_proj.weight", (inner, width)
        yield block + "mlp.up_proj.weight", (inner, width)
        yield block + "mlp.down_proj.weight", (width, inner)
    yield "model.norm.weight", (width,)
    if not shape.tie_embeddings:
        yield HEAD, (shape.vocab_size, width)
