"""Parts of a stream have the ids and the text of the whole."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import pytest

from llmtrain.tokenizer import Tokenizer, streams
from llmtrain.tokenizer.streams import (
    IncrementalDecoder,
    decoded_parts,
    encoded_parts,
    joins,
    whole_characters,
)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_PART_CHARACTERS", 500)
    monkeypatch.setattr(streams, "_LONGEST_CHARACTERS", 8_000)
    monkeypatch.setattr(streams, "_PART_IDS", 100)
    monkeypatch.setattr(streams, "_LONGEST_IDS", 1_000)


def blocks(text: str, size: int) -> Iterator[str]:
    return (text[start : start + size] for start in range(0, len(text), size))


def batches(ids: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (ids[start : start + size] for start in range(0, len(ids), size))


@pytest.mark.parametrize("size", [1, 97, 10_000])
def test_parts_are_the_whole(
    size: int, tokenizer: Tokenizer, documents: list[str], adversarial: list[str]
) -> None:
    text = "".join([*documents[:3], *adversarial, *documents[3:5]])
    whole = tokenizer.encode(text)
    parts = list(encoded_parts(tokenizer, blocks(text, size)))
    assert [token for part in parts for token in part] == whole
    assert size > 1_000 or len(parts) > 5
    pieces = list(decoded_parts(tokenizer, batches(whole, size)))
    assert "".join(pieces) == text
    assert size > 1_000 or len(pieces) > 5


def test_no_text_has_no_ids(tokenizer: Tokenizer) -> None:
    assert list(encoded_parts(tokenizer, [])) == []
    assert "".join(decoded_parts(tokenizer, [])) == ""


def test_text_without_words_is_cut_and_comes_back(tokenizer: Tokenizer) -> None:
    draw = random.Random(0)
    text = "".join(chr(draw.randrange(0x4E00, 0x9F00)) for _ in range(20_000)) + "01" * 100
    parts = list(encoded_parts(tokenizer, blocks(text, 300)))
    assert len(parts) > 1
    ids = [token for part in parts for token in part]
    assert tokenizer.decode(ids) == text
    assert "".join(decoded_parts(tokenizer, batches(ids, 50))) == text


def test_ids_that_no_text_has_decode_alike(tokenizer: Tokenizer) -> None:
    draw = random.Random(1)
    ids = [draw.randrange(tokenizer.vocab_size) for _ in range(2_000)]
    assert "".join(decoded_parts(tokenizer, batches(ids, 30))) == tokenizer.decode(ids)


def test_own_tokenizers_join(tokenizer: Tokenizer) -> None:
    assert joins(tokenizer)


def incrementally(tokenizer: Tokenizer, before: Sequence[int], ids: Sequence[int]) -> str:
    decoder = IncrementalDecoder(tokenizer, before)
    return "".join([*map(decoder.add, ids), decoder.finish()])


@pytest.mark.parametrize("split", [0, 1, 30, *range(395, 405)])
def test_ids_that_arrive_one_by_one_give_the_text_of_all(
    tokenizer: Tokenizer, documents: list[str], adversarial: list[str], split: int
) -> None:
    for text in ("".join(adversarial), documents[3][:3_000], "中é😀" * 200):
        ids = tokenizer.encode(text)
        # A character or an escape that is cut in two is not shown yet.
        shown = whole_characters(tokenizer.decode(ids[:split]))
        assert shown + incrementally(tokenizer, ids[:split], ids[split:]) == text


def test_ids_in_no_order_give_the_text_of_all(tokenizer: Tokenizer) -> None:
    """Bytes that are no characters, and codes cut in two, as an untrained model samples them."""
    draw = random.Random(0)
    pieces = tokenizer.pieces()
    odd = [i for i, piece in enumerate(pieces) if piece.kind == "byte"]
    odd += [tokenizer.encode(text)[-1] for text in ("0", "1", " ", "▁")]
    for ids in (
        draw.choices(range(tokenizer.vocab_size), k=500),
        draw.choices(odd, k=500),
        [token for token in odd if pieces[token].text >= "<0x80>"] * 3,
    ):
        assert incrementally(tokenizer, [], ids) == tokenizer.decode(ids)


def test_a_character_is_shown_with_its_last_byte(tokenizer: Tokenizer) -> None:
    ids = [token for token in tokenizer.encode("\U00010348") if tokenizer.decode([token]) != ""]
    decoder = IncrementalDecoder(tokenizer)
    assert [decoder.add(token) for token in ids] == [*[""] * (len(ids) - 1), "\U00010348"]
