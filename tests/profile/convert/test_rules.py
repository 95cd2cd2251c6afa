"""Nothing is lost: every key of an old configuration has an entry, and a reason."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import pytest

from llmtrain.profile.convert import huggingface, llm_trainer, nanogpt
from llmtrain.profile.convert.rules import Source, convert, gated_width, trackers
from llmtrain.profile.load import known_paths

TABLES: dict[Source, ModuleType] = {
    "llm-trainer": llm_trainer,
    "nanogpt": nanogpt,
    "huggingface": huggingface,
}
# A value of each key that is of its type; the rest take 1.
VALUES: Mapping[str, Any] = {
    "lr_scheduler": "cosine",
    "learning_rate_type": "linear",
    "lr_scheduler_type": "cosine",
    "distributed_backend": "gloo",
    "dataset_name": "wikitext",
    "train_file": None,
    "validation_file": None,
    "dtype": "bfloat16",
}


@pytest.mark.parametrize("source", TABLES)
def test_every_key_has_an_entry_that_says_what_became_of_it(source: Source) -> None:
    table = TABLES[source]
    given = {key: VALUES.get(key.rpartition(".")[2], 1) for key in table.RULES}
    given["colour"] = "blue"
    conversion = convert(given, table.RULES, table.DEFAULTS, source)
    assert {entry.name for entry in conversion.entries} == given.keys()
    for entry in conversion.entries:
        assert bool(entry.settings) == (entry.outcome == "mapped")
        assert entry.settings or entry.note
    assert set(conversion.settings) <= {*known_paths(), "name"}
    unknown = next(entry for entry in conversion.entries if entry.name == "colour")
    assert (unknown.outcome, source in unknown.note) == ("dropped", True)


@pytest.mark.parametrize("source", TABLES)
def test_defaults_have_rules_and_are_marked(source: Source) -> None:
    table = TABLES[source]
    assert table.DEFAULTS.keys() <= table.RULES.keys()
    entries = convert({}, table.RULES, table.DEFAULTS, source).entries
    assert not any(entry.given for entry in entries)
    assert {entry.name for entry in entries} == table.DEFAULTS.keys()


def test_of_two_keys_for_one_setting_the_first_counts_and_the_other_says_so() -> None:
    given = {"device": "cpu", "training.device": "cuda"}
    first, second = convert(given, llm_trainer.RULES, {}, "llm-trainer").entries
    assert (first.outcome, second.outcome) == ("mapped", "replaced")
    assert second.note == "device says so already: device.kind is cpu"


def test_a_gated_mlp_has_as_many_weights() -> None:
    assert (gated_width(3072), gated_width(1024)) == (2048, 680)


@pytest.mark.parametrize(
    ("value", "log_to", "note"),
    [
        ("wandb", ["wandb"], ""),
        (["tensorboard", "comet_ml"], ["tensorboard"], "not to comet_ml"),
        (["comet_ml"], None, "not to comet_ml"),
        (["none"], None, "metrics.jsonl"),
        ("all", None, "metrics.jsonl"),
        (None, None, "metrics.jsonl"),
    ],
)
def test_trackers_are_those_that_llmtrain_has(
    value: Any, log_to: list[str] | None, note: str
) -> None:
    became = trackers(value, {})
    assert became.settings.get("log_to") == log_to
    assert note in became.note
