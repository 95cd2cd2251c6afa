"""Which of llama.cpp's ways to split text before BPE gives a tokenizer's ids.

A GGUF file does not hold the pattern: `tokenizer.ggml.pre` is the name of one that llama.cpp was
compiled with, and a wrong name changes the ids of most texts without an error. So each known
pattern is put into the tokenizer, and its ids are compared on probe texts and on every piece.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

from llmtrain.tokenizer.byte_unicode import bytes_of
from llmtrain.tokenizer.probes import PROBES

_SPACES = r"\s+(?!\S)|\s+"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|" + _SPACES
_LINES = r"\s*[\r\n]+|" + _SPACES
_CAPITALS, _SMALL = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_PARTS_PIECES = 64  # in one probe


def _modern(digits: str) -> str:
    words = rf"[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    return f"{_CONTRACTION}|{words}|{_LINES}"


def _cased(digits: str, contraction: str) -> str:
    start = r"[^\r\n\p{L}\p{N}]?"
    lower = f"{start}{_CAPITALS}*{_SMALL}+{contraction}"
    upper = f"{start}{_CAPITALS}+{_SMALL}*{contraction}"
    return rf"{lower}|{upper}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_LINES}"


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """One of llama.cpp's: each pattern splits what the ones before it left."""

    patterns: tuple[str, ...]
    takes_whole_words: bool = False  # a word that is a piece is not merged at all


_MARKS = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""
_QWEN35 = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}|"
    rf" ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_LINES}"
)
_DEEPSEEK_WORDS = (
    rf"{_MARKS}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+|"
    rf" ?[\p{{P}}\p{{S}}]+[\r\n]*|{_LINES}"
)
PRE_TOKENIZERS = {
    "gpt-2": PreTokenizer((_WORDS,)),
    "llama-bpe": PreTokenizer((_modern(r"\p{N}{1,3}"),), takes_whole_words=True),
    "dbrx": PreTokenizer((_modern(r"\p{N}{1,3}"),)),
    "qwen2": PreTokenizer((_modern(r"\p{N}"),)),
    "qwen35": PreTokenizer((_QWEN35,)),
    "gpt-4o": PreTokenizer((_cased(r"\p{N}{1,3}", _CONTRACTION + "?"),)),
    "tekken": PreTokenizer((_cased(r"\p{N}", ""),), takes_whole_words=True),
    "smollm": PreTokenizer((r"\p{N}", _WORDS)),
    "deepseek-v3": PreTokenizer(
        (
            r"\p{N}{1,3}",
            "[一-龥぀-ゟ゠-ヿ]+",
            _DEEPSEEK_WORDS,
        )
    ),
}


def find_pre_tokenizer(model: bytes) -> tuple[str | None, str]:
    """Return llama.cpp's name for how a byte-level BPE tokenizer.json splits text.

    None where none has its ids, and then with the first text that differs in the likeliest one.
    Texts that the tokenizer normalizes are not compared: llama.cpp does not normalize.
    """
    theirs, ours = Tokenizer.from_buffer(model), Tokenizer.from_buffer(model)
    ours.encode_special_tokens = theirs.encode_special_tokens = True
    theirs.normalizer = normalizers.Sequence([])
    texts = [text for text in _probes(ours) if not normalizes(ours, text)]
    wanted = [ours.encode(text, add_special_tokens=False).ids for text in texts]
    problem = ""
    for name in sorted(PRE_TOKENIZERS, key=lambda name: _differing_splits(ours, name)):
        theirs.pre_tokenizer = _splitting(PRE_TOKENIZERS[name])
        theirs.model.ignore_merges = PRE_TOKENIZERS[name].takes_whole_words
        for text, ids in zip(texts, wanted, strict=True):
            if theirs.encode(text, add_special_tokens=False).ids != ids:
                problem = problem or text
                break
        else:
            return name, ""
    return None, problem


def _differing_splits(tokenizer: Tokenizer, name: str) -> tuple[int, bool]:
    """Return how unlike the tokenizer's own way one of llama.cpp's is: 0, False is the same."""
    theirs = _splitting(PRE_TOKENIZERS[name])
    differing = sum(
        tokenizer.pre_tokenizer.pre_tokenize_str(text) != theirs.pre_tokenize_str(text)
        for text in PROBES
    )
    whole_words = PRE_TOKENIZERS[name].takes_whole_words
    return differing, tokenizer.model.ignore_merges != whole_words


def normalizes(tokenizer: Tokenizer, text: str) -> bool:
    """Return whether the tokenizer changes the text before it splits it."""
    return tokenizer.normalizer is not None and tokenizer.normalizer.normalize_str(text) != text


def _splitting(pre_tokenizer: PreTokenizer) -> pre_tokenizers.PreTokenizer:
    splits = [pre_tokenizers.Split(Regex(each), "isolated") for each in pre_tokenizer.patterns]
    in_letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*splits, in_letters])


def _probes(tokenizer: Tokenizer) -> Iterator[str]:
    yield from PROBES
    words = [text for text in map(_text_of, tokenizer.get_vocab(False)) if text]
    for start in range(0, len(words), _PARTS_PIECES):
        part = words[start : start + _PARTS_PIECES]
        yield "".join(part)
        yield "\n".join(part)


def _text_of(piece: str) -> str:
    try:
        return bytes_of(piece).decode()
    except (KeyError, UnicodeDecodeError):  # a special token, or a part of a character
        return ""
