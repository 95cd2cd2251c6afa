"""Read the config.json of a model that another program saved, and refuse what it needs beyond ours.

Our decoder computes what transformers' Qwen3, Llama and Mistral compute without biases, scaled
rotary positions and sliding windows. A setting that would change what is computed is refused with
its key and value; settings that change no logits (dropout, initialisation, caching) are passed
over.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llmtrain.errors import UsageError
from llmtrain.model.huggingface import KEYS, shape_from_values
from llmtrain.profile.shape import ModelShape


@dataclass(frozen=True, slots=True)
class _Form:
    """A model type: its class, and what transformers assumes where config.json has no such key."""

    architecture: str
    has_qk_norm: bool
    head_dim: int | None  # None: hidden_size / num_attention_heads
    num_kv_heads: int | None  # None: as many as query heads
    context: int
    defaults: Mapping[str, Any]


_NORM = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False}
_FORMS = {
    "qwen3": _Form("Qwen3ForCausalLM", True, 128, 32, 32_768, _NORM),
    "llama": _Form("LlamaForCausalLM", False, None, None, 2_048, _NORM),
    "mistral": _Form("MistralForCausalLM", False, None, 8, 131_072, _NORM),
}
_DEFAULT_THETA = 10_000.0
_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)
# Keys with the only values that our decoder has a form for; a missing key is one of them.
_ALLOWED: Mapping[str, tuple[object, ...]] = {
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "use_sliding_window": (False,),
    "quantization_config": (None,),
    "auto_map": (None,),  # code of its own
    "partial_rotary_factor": (None, 1, 1.0),
}
_FULL_ATTENTION = "full_attention"
_ROPE_ALLOWED: Mapping[str, tuple[object, ...]] = {
    "rope_type": ("default", None),
    "type": ("default", None),
    "partial_rotary_factor": (None, 1, 1.0),
}


def shape_of_pretrained(config: object, origin: str) -> ModelShape:
    """Return the shape that a config.json of transformers 4 or 5 describes.

    Raises UsageError naming the key and its value, for a setting that is unsupported or not valid.
    """
    if not isinstance(config, Mapping):
        raise UsageError(f"{origin} is not an object")
    kind = config.get("model_type")
    form = _FORMS.get(kind) if isinstance(kind, str) else None
    if form is None:
        raise _unsupported(origin, "model_type", kind, f"it may be {', '.join(_FORMS)}")
    for key, value, allowed in _conflicts(config, form):
        raise _unsupported(origin, key, value, f"it may be {allowed}")
    missing = [key for key in _REQUIRED if key not in config]
    if missing:
        raise UsageError(f"{origin}: {', '.join(missing)} missing")
    return shape_from_values(_values(config, form), origin, qk_norm=form.has_qk_norm)


def _conflicts(config: Mapping[str, Any], form: _Form) -> Iterator[tuple[str, object, str]]:
    """Yield key, value and supported value of each setting that changes what is computed."""
    architectures = config.get("architectures")
    if architectures is not None and architectures != [form.architecture]:
        yield "architectures", architectures, _shown([form.architecture])
    for key, allowed in _ALLOWED.items():
        if key in config and not _is_one_of(config[key], allowed):
            yield key, config[key], _shown(allowed[0])
    if form.architecture == "MistralForCausalLM" and config.get("sliding_window") is not None:
        yield "sliding_window", config["sliding_window"], "null"
    layers = config.get("layer_types")
    for layer in layers if isinstance(layers, list) else []:
        if layer != _FULL_ATTENTION:
            yield "layer_types", layer, _FULL_ATTENTION
    for name in ("rope_scaling", "rope_parameters"):
        yield from _rope_conflicts(name, config.get(name))


def _rope_conflicts(name: str, rope: object) -> Iterator[tuple[str, object, str]]:
    if rope is None:
        return
    if not isinstance(rope, Mapping):
        yield name, rope, "null"
        return
    for key, allowed in _ROPE_ALLOWED.items():
        if not _is_one_of(rope.get(key), allowed):
            yield f"{name}.{key}", rope[key], _shown(allowed[0])
    for key in rope.keys() - _ROPE_ALLOWED.keys() - {"rope_theta"}:
        if rope[key] is not None:  # a factor, or the parameters of one kind of layer
            yield f"{name}.{key}", rope[key], "null"


def _values(config: Mapping[str, Any], form: _Form) -> dict[str, Any]:
    """Return the values of our shape by Hugging Face's keys, with transformers' defaults."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = rope.get("rope_theta", config.get("rope_theta", _DEFAULT_THETA))
    heads = config["num_attention_heads"]
    values = {
        **form.defaults,
        "head_dim": form.head_dim or "auto",
        "num_key_value_heads": form.num_kv_heads or heads,
        "max_position_embeddings": form.context,
        **{key: config[key] for key in KEYS.values() if key in config},
        "rope_theta": theta,
    }
    if values["head_dim"] is None:
        values["head_dim"] = "auto"
    if values["num_key_value_heads"] is None:
        values["num_key_value_heads"] = heads
    # JSON does not say whether 500000 is a whole number or not; our schema is strict.
    for key in ("rope_theta", "rms_norm_eps"):
        if type(values[key]) is int:
            values[key] = float(values[key])
    return values


def _is_one_of(value: object, allowed: tuple[object, ...]) -> bool:
    """Return whether `value` is allowed; 1 is not true here, nor 0 false."""
    return any(value == each and type(value) is type(each) for each in allowed)


def _unsupported(origin: str, key: str, value: object, supported: str) -> UsageError:
    return UsageError(
        f"{origin}: {key} is {_shown(value)[:80]}, which this model has no form for; {supported}",
        hint="llmtrain reads Qwen3 and Llama forms: no biases, plain rotary positions, full "
        "attention, SwiGLU",
    )


def _shown(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
