"""A prompt may end anywhere: what follows is sampled as if there were no end there."""

from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, pre_tokenizers, trainers

from llmtrain.tokenizer import ImportOptions, Tokenizer, import_tokenizer, train_tokenizer
from llmtrain.tokenizer.escape import SPACE_MARK
from llmtrain.tokenizer.healing import Spellings, heal_prompt
from tests.tokenizer.test_importing import sentencepiece_model

KINDS = ("own", "unigram", "bytes", "llama")


@pytest.fixture(scope="module", params=KINDS)
def any_tokenizer(
    request: pytest.FixtureRequest, documents: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    """A tokenizer of each kind."""
    path = tmp_path_factory.mktemp("healing")
    if request.param == "own":
        return train_tokenizer(documents[:60], vocab_size=1_500).tokenizer
    if request.param == "unigram":
        texts = [*documents[:30], "    return value\n" * 300]  # a word in every library's text
        return train_tokenizer(texts, vocab_size=1_000, kind="unigram").tokenizer
    if request.param == "llama":
        (path / "tokenizer.model").write_bytes(sentencepiece_model(documents))
        return import_tokenizer(path, ImportOptions()).tokenizer
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1_500, initial_alphabet=letters, show_progress=False, special_tokens=["</s>"]
    )
    made.train_from_iterator(documents[:60], trainer)
    made.save(str(path / "tokenizer.json"))
    return import_tokenizer(path, ImportOptions()).tokenizer


PROMPTS = (
    *("", " ", "def ", "import ", "def", "retur", "    retur", "x = 1", "a\n    ", "\n", "if x:\n"),
    *(
        "é",
        "naïv",
        "中",
        "😀 ",
        f"{SPACE_MARK} ",
        f"a{SPACE_MARK}",
        "<|endoftext|>",
        "  two  spaces ",
    ),
)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_every_allowed_id_keeps_the_prompt(any_tokenizer: Tokenizer, prompt: str) -> None:
    healed = heal_prompt(any_tokenizer, prompt, Spellings(any_tokenizer))
    assert healed.text == prompt
    assert healed.kept[0] == any_tokenizer.separator_id
    assert [*healed.kept[1:], *healed.dropped] == any_tokenizer.encode(prompt)
    for count in range(len(healed.dropped)):
        allowed = healed.allowed(healed.dropped[:count])
        assert allowed is not None
        assert healed.dropped[count] in allowed
        assert any_tokenizer.separator_id not in allowed
        for token in {*allowed} - {healed.dropped[count]}:
            text = any_tokenizer.decode([*healed.kept, *healed.dropped[:count], token])
            assert text.rstrip("\ufffd").startswith(prompt.rstrip("\ufffd"))
            assert healed.allowed([*healed.dropped[:count], token]) is None
    assert healed.allowed(healed.dropped) is None


@pytest.mark.parametrize(
    ("prompt", "word"), [("def ", " "), ("x = retur", "return"), ("imp", "import")]
)
def test_words_that_begin_so_are_allowed(any_tokenizer: Tokenizer, prompt: str, word: str) -> None:
    healed = heal_prompt(any_tokenizer, prompt, Spellings(any_tokenizer))
    start = any_tokenizer.decode(healed.kept)
    found = {
        any_tokenizer.decode([*healed.kept, token])[len(start) :]
        for token in healed.allowed([]) or []
    }
    assert any(text.strip().startswith(word.strip()) and len(text) > 1 for text in found), found


def test_nothing_is_dropped_where_no_token_is_longer(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["xy " * 400, "é"], vocab_size=300).tokenizer
    healed = heal_prompt(tokenizer, "1", Spellings(tokenizer))
    assert healed.dropped == ()
    assert healed.allowed([]) is None
