"""Real text from the interpreter's own library, and one tokenizer learnt from a part of it."""

import os
import sysconfig
from pathlib import Path

import pytest

from llmtrain.tokenizer import Tokenizer, train_tokenizer
from llmtrain.tokenizer.escape import ESCAPE, SPACE_MARK

# How many documents have their ids compared with others': LLMTRAIN_TEST_DOCUMENTS=2000 for all.
_COMPARED = int(os.environ.get("LLMTRAIN_TEST_DOCUMENTS", "100"))
_DOCUMENTS = max(600, _COMPARED)
_DOCUMENT_CHARACTERS = 8_000


def _library_texts() -> list[str]:
    root = Path(sysconfig.get_path("stdlib"))
    texts = []
    for path in sorted(root.rglob("*.py")):
        if {"site-packages", "dist-packages"} & set(path.parts):
            continue
        try:
            texts.append(path.read_bytes().decode())
        except UnicodeDecodeError:
            continue
    return texts


@pytest.fixture(scope="session")
def documents() -> list[str]:
    """Pieces of the standard library, from all over it."""
    parts = [
        text[start : start + _DOCUMENT_CHARACTERS]
        for text in _library_texts()
        for start in range(0, len(text), _DOCUMENT_CHARACTERS)
    ]
    return parts[:: len(parts) // _DOCUMENTS][:_DOCUMENTS]


@pytest.fixture(scope="session")
def compared(documents: list[str]) -> list[str]:
    """Documents from all over, on which ids are compared."""
    return documents[:: len(documents) // _COMPARED][:_COMPARED]


@pytest.fixture(scope="session")
def tokenizer(documents: list[str]) -> Tokenizer:
    return train_tokenizer(documents[::3], vocab_size=3_000).tokenizer


@pytest.fixture(scope="session")
def saved(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the three files of the tokenizer."""
    directory = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(directory, model_max_length=512)
    return directory


@pytest.fixture(scope="session")
def adversarial() -> list[str]:
    """Strings that tokenizers are known to change."""
    marks = [ESCAPE, SPACE_MARK, "0", "1", " "]
    return [
        "",
        " ",
        "\n",
        "\r\n",
        "a\r\nb\rc\n",
        "  two  spaces   ends  ",
        "\ttabs\t\tand \t spaces\t",
        "\x00nul\x00\x00",
        "\ufeffbyte order mark\ufeff",
        "e\u0301 is not \u00e9",
        "\ufb01 \uff21 \u2460 \u00a0 \u3000 \u2028",
        "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1eb\U0001f1f7",
        "\U00010348 \U0001d518 \U000e0041 \U0010fffd \U0010ffff \ufffe \uffff",
        "\u2581 \u2585 \u2047 \ufffd",
        "0123456789 3.14159 \u0663\u0664",
        "<|endoftext|> <unk> <0x41> <s></s> <pad>",
        "<|endoftext|><|endoftext|>\n<|endoftext",
        "中文没有空格。日本語もない。",
        "\u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u202eright\u202c",
        *(a + b + c + d for a in marks for b in marks for c in marks for d in marks),
    ]
