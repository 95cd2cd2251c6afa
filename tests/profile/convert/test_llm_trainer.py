"""llm-trainer's YAML: exact values of what its CPU configurations say."""

from __future__ import annotations

from typing import Any

from llmtrain.profile.convert.llm_trainer import DEFAULTS, RULES
from llmtrain.profile.convert.rules import Conversion, convert


def converted(**given: Any) -> Conversion:
    flat = {key.replace("__", "."): value for key, value in given.items()}
    return convert(flat, RULES, DEFAULTS, "llm-trainer")


def test_a_step_has_the_tokens_of_batch_accumulation_processes_and_window() -> None:
    found = converted(
        training__batch_size=2,
        training__gradient_accumulation_steps=8,
        training__world_size=2,
        data__max_length=512,
    ).settings
    assert found["train.tokens_per_step"] == 2 * 8 * 2 * 512
    assert found["model.context"] == 512


def test_steps_end_a_run_before_epochs() -> None:
    assert converted(training__max_steps=7).settings["train.steps"] == 7
    assert "train.epochs" not in converted(training__max_steps=7).settings
    assert converted(training__num_epochs=3).settings["train.epochs"] == 3.0


def test_a_cpu_takes_no_fp16_and_no_nccl() -> None:
    on_cpu = converted(device="cpu", training__fp16=True, training__distributed_backend="nccl")
    assert {"device.precision", "device.backend"}.isdisjoint(on_cpu.settings)
    on_gpu = converted(training__fp16=True, training__distributed_backend="nccl").settings
    assert (on_gpu["device.precision"], on_gpu["device.backend"]) == ("fp16", "nccl")


def test_datasets_are_sources_on_the_hub() -> None:
    found = converted(data__dataset_config="wikitext-2-raw-v1", data__text_column="line").settings
    assert found["data.sources"] == ["hf://Salesforce/wikitext/wikitext-2-raw-v1:train#line"]
    assert found["data.validation"] == "hf://Salesforce/wikitext/wikitext-2-raw-v1:validation#line"
    own = converted(data__train_file="a.txt", data__validation_file="b.txt").settings
    assert (own["data.sources"], own["data.validation"]) == (["a.txt"], "b.txt")
