"""A corpus that is the same on every machine and in every version of Python, and a tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

TOKENIZER = Path(__file__).parent / "fixed"  # the directory of a tokenizer of 500 pieces
_RARE = (
    *("\r\n", "\n\n", "    ", "\t", "▁", "<s>", "é😀", "\x00", "e\u0301", "中文", " ", "\ufeff"),
    *("12345 ", "\u2585", "  ", " ▁ ▁"),
)


def fixed_texts() -> list[str]:
    """181 documents of up to 31 kB, 104 kB in all, with what is easily lost in them."""
    numbers = _numbers()
    sizes = [(1, 5, 60, 300)[next(numbers) % 4] for _ in range(180)]
    return [_text(numbers, size) for size in (*sizes, 6000)]


def write_fixed(directory: Path) -> tuple[Path, Path]:
    """The same text as many documents and as one."""
    texts = fixed_texts()
    many, book = directory / "many.jsonl", directory / "book.txt"
    lines = (json.dumps({"text": text}) + "\n" for text in texts)
    many.write_bytes("".join(lines).encode())
    book.write_bytes("".join(texts).replace("\x00", "").encode())
    return many, book


def _text(numbers: Iterator[int], words: int) -> str:
    vocabulary = [_word(numbers) for _ in range(200)]
    return "".join(
        _one_of(numbers, vocabulary) + (" " if next(numbers) % 10 else _one_of(numbers, _RARE))
        for _ in range(words)
    )


def _word(numbers: Iterator[int]) -> str:
    return "".join("abcdefghij"[next(numbers) % 10] for _ in range(1 + next(numbers) % 7))


def _one_of(numbers: Iterator[int], values: Sequence[str]) -> str:
    return values[next(numbers) % len(values)]


def _numbers() -> Iterator[int]:
    """A linear congruential generator with the constants of Knuth's MMIX; its upper bits."""
    state = 1
    while True:
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        yield state >> 33
