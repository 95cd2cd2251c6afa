"""How many planted copies `data.duplicates=drop_near` finds, and what it takes away wrongly.

    python -m tests.benchmarks.near_duplicates
    python -m tests.benchmarks.near_duplicates --data ../shared/data/wikitext2 --documents 3000

Every fourth document is followed, somewhere later, by a copy of it: exact, with other whitespace,
with 5% of its words replaced, or with 5% of its characters replaced. Documents are invented, or
with --data stretches of a text, some of which may be near copies without having been planted: of
those that are taken, the true similarity to the earlier text that is most like them is printed.
Exit code 1 where less than 95% of the copies of a kind are found, or more than 0.1% of the rest.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import psutil

from llmtrain.data.quality.minhash import PLACES, MinHasher, shingle_hashes
from llmtrain.data.quality.near_duplicates import repeats
from llmtrain.data.sources.resolve import resolve_sources

Kind = Literal["exact", "whitespace", "words", "characters"]
KINDS: tuple[Kind, ...] = ("exact", "whitespace", "words", "characters")
LEAST_RECALL, MOST_FALSE = 0.95, 0.001
EDITED = 0.05
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class Planted:
    """A document; `copy_of` is the place of an earlier one that it is a copy of."""

    text: str
    kind: Kind | None = None
    copy_of: int | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """Shares of copies that were found, by kind, and of originals that were taken for copies."""

    recall: dict[Kind, float]
    false: float

    @property
    def is_met(self) -> bool:
        return min(self.recall.values()) >= LEAST_RECALL and self.false <= MOST_FALSE


def invented(count: int, seed: int) -> Iterator[str]:
    """Documents of 60 to 1,200 words, whose frequencies fall as those of a language do."""
    draw = random.Random(seed)
    words = ["".join(draw.choices(_LETTERS, k=draw.randint(2, 11))) for _ in range(20_000)]
    weights = list(itertools.accumulate(1 / rank for rank in range(1, len(words) + 1)))
    for _ in range(count):
        drawn = draw.choices(words, cum_weights=weights, k=round(60 * 20 ** draw.random()))
        yield " ".join(word + draw.choice(["", "", "", ",", ".\n"]) for word in drawn)


def stretches(spec: str, count: int, characters: int) -> Iterator[str]:
    """The first stretches of so many characters of a text."""
    documents = resolve_sources([spec]).documents()
    whole = (
        d.text[i : i + characters] for d in documents for i in range(0, len(d.text), characters)
    )
    return itertools.islice((text for text in whole if len(text) > characters // 2), count)


def plant(originals: Sequence[str], seed: int) -> list[Planted]:
    """The originals with a copy of every fourth, of each kind in turn, somewhere after it."""
    draw = random.Random(seed)
    copies: dict[int, list[tuple[Kind, int]]] = {}  # after which original each comes
    for number, original in enumerate(range(0, len(originals), 4)):
        after = draw.randrange(original, len(originals))
        copies.setdefault(after, []).append((KINDS[number % len(KINDS)], original))
    planted: list[Planted] = []
    places: list[int] = []
    for number, text in enumerate(originals):
        places.append(len(planted))
        planted.append(Planted(text))
        for kind, original in copies.get(number, []):
            edited = edit(originals[original], kind, draw)
            planted.append(Planted(edited, kind, places[original]))
    return planted


def edit(text: str, kind: Kind, draw: random.Random) -> str:
    """A copy of the text that differs from it in the way of its kind."""
    if kind == "whitespace":
        return "".join(
            draw.choice([" ", "\n", "  ", "\t", "\r\n"]) if c.isspace() else c for c in text
        )
    if kind == "words":
        return _replaced(text.split(" "), draw, lambda: "".join(draw.choices(_LETTERS, k=6)), " ")
    if kind == "characters":
        return _replaced(list(text), draw, lambda: draw.choice(_LETTERS), "")
    return text


def _replaced(parts: list[str], draw: random.Random, new: Callable[[], str], joint: str) -> str:
    return joint.join(new() if draw.random() < EDITED else part for part in parts)


def score(planted: Sequence[Planted], flags: Sequence[bool]) -> Score:
    """What the flags come to."""
    found = {
        kind: [flag for each, flag in zip(planted, flags, strict=True) if each.kind == kind]
        for kind in KINDS
    }
    rest = [flag for each, flag in zip(planted, flags, strict=True) if each.kind is None]
    recall = {kind: sum(each) / max(1, len(each)) for kind, each in found.items()}
    return Score(recall, sum(rest) / max(1, len(rest)))


def flags_of(texts: Sequence[str]) -> list[bool]:
    """Which texts are left out as near copies of earlier ones."""
    signer = MinHasher()
    for text in texts:
        signer.add(text)
    flags: list[bool] = repeats(signer.signatures(), lambda: None).tolist()
    return flags


def unplanted(planted: Sequence[Planted], flags: Sequence[bool]) -> list[float]:
    """For each flagged original, its true similarity to the earlier text most like it."""
    bare = ("".join(each.text.lower().split()) for each in planted)
    sets = [set(shingle_hashes(text).tolist()) for text in bare]
    return [
        max(len(mine & other) / len(mine | other) for other in sets[:place])
        for place, (each, flag, mine) in enumerate(zip(planted, flags, sets, strict=True))
        if flag and each.kind is None
    ]


def main(arguments: Sequence[str]) -> int:
    """The table is printed; 1 where it is worse than it has to be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=20_000, help="originals")
    parser.add_argument("--data", help="take them from this text")
    parser.add_argument("--characters", type=int, default=3000, help="of each, with --data")
    parser.add_argument("--seed", type=int, default=1)
    values = parser.parse_args(arguments)
    originals = list(
        stretches(values.data, values.documents, values.characters)
        if values.data
        else invented(values.documents, values.seed)
    )
    planted = plant(originals, values.seed)
    text_bytes = sum(len(each.text.encode()) for each in planted)
    before_bytes, begun_s = _resident_bytes(), time.process_time()
    flags = flags_of([each.text for each in planted])
    result = score(planted, flags)
    took_s = time.process_time() - begun_s
    more_kib = (_resident_bytes() - before_bytes) >> 10
    lines = [
        f"{len(originals)} documents, {len(planted) - len(originals)} copies, {text_bytes} bytes",
        *(f"found, {kind:<12}{share:8.2%}" for kind, share in result.recall.items()),
        f"taken wrongly      {result.false:8.3%}",
        f"memory             {2 * PLACES} bytes a signature; it grew by {more_kib} KiB",
        f"processor time     {took_s:.1f} s, {text_bytes / took_s / 1e6:.1f} MB/s",
    ]
    if result.false:
        similarities = " ".join(f"{each:.2f}" for each in sorted(unplanted(planted, flags)))
        lines.append(f"similar by           {similarities}")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0 if result.is_met else 1


def _resident_bytes() -> int:
    return psutil.Process().memory_info().rss


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
