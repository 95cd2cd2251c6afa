"""Filters that drop documents by their content. None of them changes a text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from llmtrain.data.document import LONGEST_BYTES, Document
from llmtrain.profile.schema import FiltersSection
from llmtrain.units import format_bytes

_JUDGED_CHARACTERS = 1 << 20  # repetition is counted in the beginning of a longer text
_LONGEST_GRAM = 4  # words


@dataclass(frozen=True, slots=True)
class Filter:
    """A rule, and a short description of what it drops."""

    reason: str
    drops: Callable[[Document], bool]


def filters_of(section: FiltersSection) -> tuple[Filter, ...]:
    """Return the filters of the section, the cheapest first.

    Raises UsageError if languages are asked for and cannot be detected.
    """
    return tuple(_filters(section))


def _filters(section: FiltersSection) -> Iterator[Filter]:
    least, most, repetitive = section.min_bytes, section.max_bytes, section.max_repetition
    if least is not None:
        yield Filter(
            f"shorter than {format_bytes(least)}", lambda document: size_bytes(document) < least
        )
    if most is not None:
        yield Filter(
            f"longer than {format_bytes(most)}", lambda document: size_bytes(document) > most
        )
    if repetitive is not None:
        yield Filter(
            f"repetition above {repetitive:g}",
            lambda document: repetition(document.text) > repetitive,
        )
    if section.languages is not None:
        yield _language_filter(section.languages)


def _language_filter(languages: Sequence[str]) -> Filter:
    from llmtrain.data.quality.languages import LanguageDetector

    detector = LanguageDetector()
    detector.require_known(languages)
    wanted = frozenset(languages)
    return Filter(
        f"not in {', '.join(languages)}",
        lambda document: detector.language(document.text) not in wanted,
    )


def size_bytes(document: Document) -> int:
    """Return the size of the text, at least 32 MiB if it is part of a longer one."""
    own = len(document.text.encode())
    return own if document.part_at is None else max(own, LONGEST_BYTES)


def repetition(text: str) -> float:
    """Return the largest share of a text that repeats, 0 to 1.

    Measured: lines that occurred before, by number and by characters; and the characters in the 2,
    3 and 4 words in a row that take most of it, if they occur more than once. These are measures
    of Rae et al. 2021 ("Scaling Language Models: Methods, Analysis & Insights from Training
    Gopher", table A1), whose limits for them are 0.30, 0.20, 0.20, 0.18 and 0.16.
    """
    beginning = text[:_JUDGED_CHARACTERS]
    return max(*_repeated_lines(beginning), *_most_frequent_grams(beginning))


def _repeated_lines(text: str) -> tuple[float, float]:
    """Return the shares of repeated lines, and of their characters."""
    lines = [line for line in map(str.strip, text.splitlines()) if line]
    if not lines:
        return 0.0, 0.0
    distinct = set(lines)
    by_characters = 1 - sum(map(len, distinct)) / sum(map(len, lines))
    return 1 - len(distinct) / len(lines), by_characters


def _most_frequent_grams(text: str) -> Iterator[float]:
    """Yield the share of characters in the 2, 3 and 4 words that take most of them."""
    words = text.split()
    characters = sum(map(len, words))
    for size in range(2, _LONGEST_GRAM + 1):
        grams = list(zip(*(words[start:] for start in range(size)), strict=False))
        counts = Counter(grams)
        top = max(counts, key=lambda gram: counts[gram] * sum(map(len, gram)), default=())
        if counts[top] < 2:
            yield 0.0
            continue
        # They can overlap, as in `a b a b a`: each word counts once.
        begins = (place for place, gram in enumerate(grams) if gram == top)
        taken = {place + each for place in begins for each in range(size)}
        yield sum(len(words[place]) for place in taken) / characters
