from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from llmtrain.data.corpus import Corpus
from llmtrain.data.document import Document
from llmtrain.data.quality.clean import EXACT, NEAR_COPY, clean
from llmtrain.data.quality.dropped import DroppedDocuments
from llmtrain.data.quality.filters import Filter, filters_of
from llmtrain.data.sources.resolve import resolve_sources
from llmtrain.errors import DataError, UsageError
from llmtrain.profile.schema import FiltersSection
from tests.benchmarks.near_duplicates import invented

Write = Callable[..., Corpus]


def go_on() -> None:
    """Nobody stops these tests."""


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A corpus of one document a line."""

    def make(*texts: str) -> Corpus:
        path = tmp_path / "corpus.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        return resolve_sources([str(path)])

    return make


def texts(corpus: Corpus) -> list[str]:
    return [document.text for document in corpus.documents()]


def test_without_rules_nothing_is_read_or_changed(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"text": "one"}\n')
    corpus = resolve_sources([str(path)])
    path.unlink()  # reading would fail
    cleaned = clean(corpus, filters_of(FiltersSection()), "keep", go_on)
    assert (cleaned.corpus, cleaned.left_out) == (corpus, ())


def test_the_first_of_equal_documents_stays(write: Write) -> None:
    cleaned = clean(write("a", "b", "a", "c", "b", "a", "a "), (), "drop_exact", go_on)
    assert texts(cleaned.corpus) == ["a", "b", "c", "a "]
    (tally,) = cleaned.left_out
    assert (tally.reason, tally.documents, tally.text_bytes) == (EXACT, 3, 3)
    assert [each.beginning for each in tally.examples] == ["a", "b", "a"]


def test_of_near_copies_the_first_stays_too(write: Write) -> None:
    one, two = invented(2, seed=1)
    spaced = one.replace(" ", "\n ")
    edited = two.replace(two.split()[5], "other")
    cleaned = clean(write(one, "", two, spaced, one, edited), (), "drop_near", go_on)
    assert texts(cleaned.corpus) == [one, two]
    by_reason = {tally.reason: tally for tally in cleaned.left_out}
    assert by_reason[EXACT].documents == 1
    near = by_reason[NEAR_COPY]
    assert (near.documents, near.text_bytes) == (2, len((spaced + edited).encode()))
    assert near.examples[0].origin.endswith("corpus.jsonl:4")
    assert spaced.startswith(near.examples[0].beginning)


def test_every_pass_is_alike_and_no_text_is_changed(write: Write) -> None:
    whole = write(*invented(30, seed=1), "x" * 5, *invented(30, seed=1))
    cleaned = clean(whole, filters_of(FiltersSection(min_bytes=6)), "drop_near", go_on).corpus
    assert texts(cleaned) == texts(cleaned) == list(invented(30, seed=1))
    assert cleaned.measure().fingerprint == write(*invented(30, seed=1)).measure().fingerprint


def test_a_document_counts_for_the_first_rule_that_it_breaks(write: Write) -> None:
    rules = filters_of(FiltersSection(min_bytes=3, max_bytes=8))
    cleaned = clean(write("ab", "abcd", "ab", "abcdefghi", "abcd"), rules, "drop_exact", go_on)
    assert texts(cleaned.corpus) == ["abcd"]
    counts = {tally.reason: tally.documents for tally in cleaned.left_out}
    assert counts == {"shorter than 3 B": 2, "longer than 8 B": 1, EXACT: 1}


def test_what_a_filter_takes_is_no_first_of_equal_ones(write: Write) -> None:
    seen: list[str] = []

    def every_second(document: Document) -> bool:
        seen.append(document.text)
        return len(seen) % 2 == 1

    cleaned = clean(write("a", "a", "a"), [Filter("odd", every_second)], "drop_exact", go_on)
    assert [tally.documents for tally in cleaned.left_out] == [2]
    assert texts(cleaned.corpus) == ["a"]


def test_no_more_than_three_examples(write: Write) -> None:
    (tally,) = clean(
        write(*"abcde", "kept" * 50, "long\x1b[31m" + "z" * 80),
        filters_of(FiltersSection(min_bytes=100)),
        "keep",
        go_on,
    ).left_out
    assert (tally.documents, len(tally.examples)) == (6, 3)
    assert tally.describe().startswith("6 documents (94 B) shorter than 100 B, for example ")


def test_leaving_nothing_is_an_error(write: Write) -> None:
    with pytest.raises(DataError, match="every document: 2 shorter than 10 B") as caught:
        clean(write("a", "b"), filters_of(FiltersSection(min_bytes=10)), "keep", go_on)
    assert caught.value.hint


@pytest.mark.parametrize("changed", [("a", "b"), ("a", "b", "a", "c"), ("a", "bb", "a")])
def test_text_that_changed_since_it_was_decided_on_is_refused(
    changed: tuple[str, ...], write: Write
) -> None:
    cleaned = clean(write("a", "b", "a"), (), "drop_exact", go_on).corpus
    assert texts(cleaned) == ["a", "b"]
    write(*changed)
    with pytest.raises(DataError, match="changed while it was being read"):
        texts(cleaned)


def test_near_copies_without_their_library(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmtrain.data.quality.minhash.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="rensa") as caught:
        clean(write("a"), (), "drop_near", go_on)
    assert caught.value.hint == "pip install 'llmtrain[dedup]'"


def test_bits_are_of_the_right_places() -> None:
    documents = [Document(str(number), "here") for number in range(20)]
    odd = DroppedDocuments(20, 30, bytes([0b10101010, 0b10101010, 0b1010]))
    assert [int(d.text) for d in odd.filter(iter(documents))] == list(range(0, 20, 2))


def test_counting_repeats_costs_no_rule(write: Write) -> None:
    facts = write("aa", "b", "aa", "aa", "c").measure()
    assert (facts.repeated_documents, facts.repeated_bytes) == (2, 4)
