from __future__ import annotations

import random

import numpy as np
import pytest

from llmtrain.data.quality import minhash
from llmtrain.data.quality.minhash import PLACES, MinHasher, Signatures
from llmtrain.data.quality.near_duplicates import NEAR, copied_from, repeats
from tests.benchmarks.near_duplicates import (
    LEAST_RECALL,
    MOST_FALSE,
    edit,
    flags_of,
    invented,
    plant,
    score,
)


def go_on() -> None:
    """Nobody stops these tests."""


def signatures_of(*texts: str) -> Signatures:
    signer = MinHasher()
    for text in texts:
        signer.add(text)
    return signer.signatures()


def similar(share: float, base: np.ndarray, seed: int) -> np.ndarray:
    """A signature that agrees with `base` in that share of its places."""
    draw = np.random.default_rng(seed)
    other = draw.integers(0, 2**16, PLACES, dtype=np.uint16)
    places = draw.permutation(PLACES)[: round(share * PLACES)]
    other[places] = base[places]
    return other


def test_planted_copies_are_found_and_nothing_else() -> None:
    planted = plant(list(invented(3000, seed=5)), seed=5)

    result = score(planted, flags_of([each.text for each in planted]))

    assert min(result.recall.values()) >= LEAST_RECALL, result
    assert result.false <= MOST_FALSE


def test_the_same_texts_give_the_same_answer() -> None:
    texts = [each.text for each in plant(list(invented(200, seed=2)), seed=2)]
    assert flags_of(texts) == flags_of(texts)


def test_signatures_do_not_depend_on_what_else_is_signed(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = list(invented(40, seed=3))
    at_once = signatures_of(*texts)
    assert (np.concatenate([signatures_of(text) for text in texts]) == at_once).all()

    monkeypatch.setattr(minhash, "_BATCH_CHARACTERS", 50)  # each text is many stretches
    assert (signatures_of(*texts) == at_once).all()


def test_signatures_are_what_they_always_were() -> None:
    # Decisions are part of what a cached text is known by: others need another key.
    assert signatures_of("The quick brown fox.")[0, :4].tolist() == [46157, 10177, 2549, 3284]


@pytest.mark.parametrize("text", ["", " \n\t ", "a", "abcdef", "é😀", "\x00\x01"])
def test_short_texts_equal_themselves_alone(text: str) -> None:
    assert flags_of(["something else altogether", text, text]) == [False, False, True]


def test_whitespace_and_case_do_not_count() -> None:
    assert flags_of(["One two\nthree.", "ONE\ttwo  three .", "onetwothree."]) == [False, True, True]


def test_a_signature_takes_as_much_as_is_said() -> None:
    assert signatures_of("a", "b").nbytes == 2 * 2 * PLACES
    assert signatures_of().shape == (0, PLACES)


def test_estimates_are_near_the_true_similarity() -> None:
    draw = random.Random(1)
    text = next(invented(1, seed=9))
    for kind in ("words", "characters"):
        other = edit(text, kind, draw)
        mine, others = (
            set(minhash.shingle_hashes("".join(t.lower().split())).tolist()) for t in (text, other)
        )
        true = len(mine & others) / len(mine | others)
        a, b = signatures_of(text, other)
        assert abs(float((a == b).mean()) - true) < 0.12  # four standard deviations


@pytest.mark.parametrize(("share", "is_near"), [(NEAR + 0.05, True), (NEAR - 0.05, False)])
def test_meeting_in_a_band_is_not_enough(share: float, is_near: bool) -> None:
    base = np.random.default_rng(0).integers(0, 2**16, PLACES, dtype=np.uint16)
    others = [similar(share, base, seed) for seed in range(1, 51)]
    found = [repeats(np.stack([base, other]), go_on)[1] for other in others]
    assert all(found) if is_near else not any(found)
    # They do meet, or this would say nothing.
    bands = [(base == other).reshape(-1, 4).all(axis=1).any() for other in others]
    assert np.mean(bands) > 0.5


def test_a_chain_of_changes_is_not_dropped_whole() -> None:
    base = np.random.default_rng(4).integers(0, 2**16, PLACES, dtype=np.uint16)
    chain = [base.copy()]
    for step in range(8):
        link = chain[-1].copy()
        link[step * 32 : (step + 1) * 32] += 1
        chain.append(link)

    flags = repeats(np.stack(chain), go_on)

    assert not flags[0]
    assert flags[1]
    for place in np.flatnonzero(flags):
        kept = [chain[k] for k in range(place) if not flags[k]]
        assert any((chain[place] == each).mean() >= NEAR for each in kept)
    assert not flags.all()
    assert (~flags).sum() > 1  # the last is unlike the first


def test_copies_are_looked_for_among_sources_only() -> None:
    base = np.random.default_rng(7).integers(0, 2**16, (4, PLACES), dtype=np.uint16)
    rows = np.stack([base[0], base[1], base[0], base[2], base[1], base[3], base[2]])
    is_source = np.array([True, False, False, False, True, True, False])
    flags = copied_from(rows, is_source, go_on)
    assert flags.tolist() == [False, True, True, False, False, False, False]


def test_looking_can_be_stopped() -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    rows = signatures_of("the same", "the same")
    with pytest.raises(KeyboardInterrupt):
        repeats(rows, stop)
