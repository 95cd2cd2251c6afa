"""Our prediction of a training's peak memory beside that of `accelerate estimate-memory`.

    python -m tests.benchmarks.memory_error memory.jsonl --device cuda
    python -m tests.benchmarks.memory_beside_accelerate memory.jsonl

For every case of that file whose model is one of the three: the same architecture is made empty by
transformers and handed to the functions behind accelerate's command, which asks for the model,
mixed precision and nothing else; what it calls training with Adam is its prediction.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import init_empty_weights
from accelerate.commands.estimate import estimate_training_usage
from accelerate.utils import calculate_maximum_sizes
from transformers import AutoConfig, AutoModelForCausalLM

from llmtrain.model.huggingface import config_of
from llmtrain.profile.load import load_profile, profile_layer
from llmtrain.profile.shape import ModelShape, shape_of
from tests.benchmarks.memory_error import case_name, lines

_MODELS = ("gpu-small", "gpu-medium", "gpu-large")


def main(arguments: Sequence[str]) -> int:
    """The table of errors, in Markdown."""
    sys.stdout.write("| case | measured | ours | accelerate |\n| --- | --- | --- | --- |\n")
    for line in lines(Path(arguments[0])):
        if line["profile"] in _MODELS:
            measured = line["measured_bytes"]
            name = case_name(line["profile"], line["settings"])
            ours = line["predicted_bytes"] / measured - 1
            theirs = _accelerates_bytes(line["profile"], line["settings"]) / measured - 1
            told = f"{measured / 2**20:.0f} MiB | {100 * ours:+.1f}% | {100 * theirs:+.0f}%"
            sys.stdout.write(f"| {name} | {told} |\n")
    return 0


def _accelerates_bytes(profile: str, settings: dict[str, Any]) -> int:
    values = {name: value for name, value in settings.items() if name.startswith("model.")}
    assignments = [f"{name}={json.dumps(value)}" for name, value in values.items()]
    loaded = load_profile(profile_layer(profile), environment={}, assignments=assignments)
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(_config(shape_of(loaded.profile.model)))
    size_bytes, _ = calculate_maximum_sizes(model)
    precision = "float32" if settings.get("device.precision") == "fp32" else "bfloat16"
    return int(max(estimate_training_usage(size_bytes, precision).values()))


def _config(shape: ModelShape) -> Any:
    document = config_of(shape, bos_id=1, eos_id=1)
    return AutoConfig.for_model(document.pop("model_type"), **document)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
