"""config.json of other programs: what it means, and every setting that is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from llmtrain.errors import UsageError
from llmtrain.model.pretrained_config import shape_of_pretrained

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
QWEN3 = LLAMA | {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "num_attention_heads": 32,
}
MISTRAL = LLAMA | {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}

UNSUPPORTED: list[tuple[dict[str, Any], dict[str, Any], str, str]] = [
    (LLAMA, {"model_type": "gpt2"}, "model_type", '"gpt2"'),
    (LLAMA, {"model_type": "qwen3_moe"}, "model_type", '"qwen3_moe"'),
    (LLAMA, {"model_type": ["llama"]}, "model_type", '["llama"]'),
    (LLAMA, {"attention_bias": True}, "attention_bias", "true"),
    (LLAMA, {"mlp_bias": True}, "mlp_bias", "true"),
    (LLAMA, {"hidden_act": "gelu"}, "hidden_act", '"gelu"'),
    (QWEN3, {"use_sliding_window": True}, "use_sliding_window", "true"),
    (QWEN3, {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types", "sliding"),
    (MISTRAL, {"sliding_window": 4096}, "sliding_window", "4096"),
    (LLAMA, {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling.type", "linear"),
    (
        LLAMA,
        {"rope_scaling": {"factor": 32.0, "rope_type": "llama3"}},
        "rope_scaling.rope_type",
        '"llama3"',
    ),
    (
        LLAMA,
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}},
        "rope_parameters.rope_type",
        '"yarn"',
    ),
    (
        QWEN3,
        {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
        "rope_parameters.full_attention",
        "default",
    ),
    (LLAMA, {"rope_scaling": "linear"}, "rope_scaling", '"linear"'),
    (LLAMA, {"partial_rotary_factor": 0.5}, "partial_rotary_factor", "0.5"),
    (LLAMA, {"quantization_config": {"bits": 4}}, "quantization_config", '{"bits": 4}'),
    (LLAMA, {"auto_map": {"AutoModel": "x.Y"}}, "auto_map", "x.Y"),
    (LLAMA, {"architectures": ["LlamaForTokenClassification"]}, "architectures", "Token"),
]


@pytest.mark.parametrize(
    ("config", "change", "key", "value"), UNSUPPORTED, ids=[str(row[1]) for row in UNSUPPORTED]
)
def test_an_unsupported_setting_is_refused_with_its_value(
    config: dict[str, Any], change: dict[str, Any], key: str, value: str
) -> None:
    with pytest.raises(UsageError) as refusal:
        shape_of_pretrained(config | change, "config.json")
    assert refusal.value.message.startswith(f"config.json: {key} is ")
    assert value in refusal.value.message
    assert refusal.value.exit_code == 2


@pytest.mark.parametrize(
    "change",
    [
        {"attention_dropout": 0.1, "initializer_range": 1.0, "use_cache": False},
        {"rope_scaling": None, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
        {"sliding_window": 4096, "max_window_layers": 1, "use_sliding_window": False},
        {"layer_types": ["full_attention", "full_attention"], "pretraining_tp": 2},
    ],
)
def test_a_setting_that_changes_no_logits_is_passed_over(change: dict[str, Any]) -> None:
    assert shape_of_pretrained(QWEN3 | change, "it").qk_norm
    assert shape_of_pretrained(QWEN3 | change, "it") == shape_of_pretrained(QWEN3, "it")


@pytest.mark.parametrize(
    ("change", "theta"),
    [
        ({}, 1e4),
        ({"rope_theta": 500_000}, 5e5),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, 1e6),
        ({"rope_scaling": {"rope_type": "default"}, "rope_theta": 7.0}, 7.0),
    ],
)
def test_rope_theta_is_at_the_top_or_within(change: dict[str, Any], theta: float) -> None:
    assert shape_of_pretrained(LLAMA | change, "it").rope_theta == theta


def test_what_is_left_out_has_the_default_of_its_form() -> None:
    llama, qwen3 = shape_of_pretrained(LLAMA, "it"), shape_of_pretrained(QWEN3, "it")
    assert (llama.head_dim, llama.num_kv_heads, llama.context) == (8, 4, 2048)
    assert (qwen3.head_dim, qwen3.num_kv_heads, qwen3.context) == (128, 32, 32_768)
    assert not llama.tie_embeddings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": "32"}, "hidden_size"),
        ({"vocab_size": -1}, "vocab_size"),
        ({"num_hidden_layers": 2**40}, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, "num_kv_heads 3"),
        ({"rope_theta": float("inf")}, "rope_theta"),
        ({"head_dim": 7}, "head_dim 7"),
        ({"rms_norm_eps": None}, "rms_norm_eps"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings"),
    ],
)
def test_an_invalid_value_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        shape_of_pretrained(LLAMA | change, "it")


@pytest.mark.parametrize("config", [[], None, "llama", {}])
def test_what_is_no_config_is_refused(config: object) -> None:
    with pytest.raises(UsageError):
        shape_of_pretrained(config, "it")


def test_a_missing_key_is_named() -> None:
    with pytest.raises(UsageError, match="hidden_size missing"):
        shape_of_pretrained({k: v for k, v in LLAMA.items() if k != "hidden_size"}, "it")
