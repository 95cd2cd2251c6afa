"""Samples begin as the text does that is trained on."""

import numpy as np
import pytest

from llmtrain.profile.schema import DataSection, EvalSection, Profile
from llmtrain.tokenizer import Tokenizer
from llmtrain.train.sample_prompts import first_words, sample_prompts
from tests.data.fixed import TOKENIZER


class Stream:
    """The validation tokens of a text."""

    def __init__(self, text: str) -> None:
        tokenizer = Tokenizer.load(TOKENIZER)
        self.ids = np.array([tokenizer.separator_id, *tokenizer.encode(text)])
        self.num_tokens = len(self.ids)

    def read(self, start: int, count: int) -> np.ndarray:
        return self.ids[start : start + count]


@pytest.mark.parametrize(
    ("sources", "prompts", "expected"),
    [
        (("builtin:python",), "auto", ("def", "import")),
        (("notes",), "auto", ("Call me Ishmael.",)),
        (("notes", "builtin:python"), "auto", ("Call me Ishmael.",)),
        (("notes",), (" a ",), (" a ",)),
        (("notes",), (), ()),
    ],
)
def test_prompts_suit_the_text(
    sources: tuple[str, ...], prompts: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    profile = Profile(data=DataSection(sources=sources), eval=EvalSection(prompts=prompts))
    stream = Stream("\n\n  Call me Ishmael.\nSome years ago")
    assert sample_prompts(profile, Tokenizer.load(TOKENIZER), stream) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        (" \n\n", ""),
        ("中文" * 100, "中文" * 20),
        ("word " * 100, "word word word word word word word word"),
        ("short line\nnext", "short line"),
    ],
)
def test_the_first_words_end_at_a_space(text: str, expected: str) -> None:
    assert first_words(text) == expected
    assert not first_words(text).endswith(" ")
