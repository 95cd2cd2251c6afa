"""Whose configuration a file is, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmtrain.errors import UsageError
from llmtrain.profile.convert.read import convert_file, profile_of

OLD = """\
device: cpu
model: {vocab_size: 32000, d_model: 256, n_heads: 4, n_layers: 4, d_ff: 1024, max_seq_len: 512,
        dropout: 0.1, activation: gelu}
training: {batch_size: 2, gradient_accumulation_steps: 8, learning_rate: 8e-4, num_epochs: 5,
           use_amp: false, lr_scheduler: cosine, warmup_steps: 200, optimizer: adamw}
data: {dataset_name: wikitext, dataset_config: wikitext-2-raw-v1, max_length: 512}
"""


@pytest.mark.parametrize(
    ("name", "text", "source"),
    [
        ("old.yaml", OLD, "llm-trainer"),
        ("old.py", "n_layer = 6\n", "nanogpt"),
        ("old.json", '{"max_steps": 10}', "huggingface"),
    ],
)
def test_each_becomes_a_valid_profile_of_its_name(
    name: str, text: str, source: str, tmp_path: Path
) -> None:
    file = tmp_path / name
    file.write_text(text)
    conversion = convert_file(file)
    assert conversion.source == source
    assert profile_of(conversion, file).profile.name == "old"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "- 1\n", "not a mapping"),
        ("a.yaml", "a: &x 1\n", "anchors"),
        ("a.yaml", "colour: blue\n", "no key that a configuration of huggingface has"),
        ("a.json", "{", "not JSON"),
        ("a.py", "def (", "not Python"),
        ("a.py", "x = 1\n", "no key"),
        ("a.py", "n_layer = '" + "x" * 600_000 + "'", "cannot be read"),
        ("a.yaml", "model: {d_model: wide}\n", "model.hidden_size"),
        ("a.json", '{"warmup_steps": []}', "warmup_steps"),
        ("a.py", "batch_size = None\n", "cannot be converted"),
    ],
)
def test_what_cannot_be_converted_is_named(
    name: str, text: str, message: str, tmp_path: Path
) -> None:
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(UsageError, match=message):
        profile_of(convert_file(file), file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        convert_file(tmp_path / "none.yaml")
