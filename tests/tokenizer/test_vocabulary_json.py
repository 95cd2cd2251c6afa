"""The files beside vocab.json say what it means: added tokens, and a space before each text."""

import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from llmtrain.errors import DataError
from llmtrain.tokenizer import ImportOptions, import_tokenizer


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory with vocab.json and merges.txt of 300 tokens."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.train_from_iterator(
        ["the words of a text, and the words of another"] * 3,
        trainers.BpeTrainer(
            vocab_size=300,
            min_frequency=1,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    made.model.save(str(tmp_path))
    return tmp_path


def size_of(directory: Path) -> int:
    return len(json.loads((directory / "vocab.json").read_text("utf-8")))


@pytest.mark.parametrize("form", ["added_tokens.json", "tokenizer_config.json"])
def test_added_tokens_keep_their_ids(form: str, directory: Path) -> None:
    first = size_of(directory)
    if form == "added_tokens.json":
        described: dict[str, object] = {"<|im_start|>": first, "<|im_end|>": first + 1}
        config: dict[str, object] = {"eos_token": "<|im_end|>"}
        (directory / form).write_text(json.dumps(described))
    else:
        names = enumerate(("<|im_start|>", "<|im_end|>"), start=first)
        described = {str(token): {"content": name} for token, name in names}
        config = {"eos_token": "<|im_end|>", "added_tokens_decoder": described}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))

    imported = import_tokenizer(directory, ImportOptions())

    assert imported.tokenizer.vocab_size == first + 2
    assert (imported.separator, imported.added_separator) == ("<|im_end|>", False)
    assert imported.tokenizer.separator_id == first + 1
    assert not imported.warnings


def test_an_added_token_that_leaves_a_gap_is_refused(directory: Path) -> None:
    (directory / "added_tokens.json").write_text(json.dumps({"<|far|>": 4_000_000_000}))
    with pytest.raises(DataError, match=r"<\|far\|>.*4000000000"):
        import_tokenizer(directory, ImportOptions())


def test_an_end_of_text_that_does_not_exist_is_told(directory: Path) -> None:
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))

    (warning,) = import_tokenizer(directory, ImportOptions()).warnings

    assert "<|im_end|>" in warning
    assert "<|endoftext|>" in warning


def test_a_space_before_each_text_is_not_dropped(directory: Path) -> None:
    """The ids without it would be others than Hugging Face's."""
    (directory / "tokenizer_config.json").write_text(json.dumps({"add_prefix_space": True}))
    with pytest.raises(DataError, match="does not keep text exactly"):
        import_tokenizer(directory, ImportOptions())


def test_a_file_beside_it_that_cannot_be_parsed_is_named(directory: Path) -> None:
    (directory / "added_tokens.json").write_text("{")
    with pytest.raises(DataError, match=r"added_tokens\.json"):
        import_tokenizer(directory, ImportOptions())
