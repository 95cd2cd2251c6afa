"""The leakage between the sides of a text's split: measured once, and kept in the cache.

<cache>/leakage/<key>.json; the key is that of the text and the split.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from llmtrain.data.quality.leakage import Leakage, find_leakage
from llmtrain.data.quality.minhash import SHINGLE, has_minhash
from llmtrain.data.quality.near_duplicates import NEAR
from llmtrain.errors import UsageError
from llmtrain.files import cache_directory, json_key, write_text_atomically
from llmtrain.prepare.context import MeasuredText
from llmtrain.progress import Note
from llmtrain.untrusted import JSON_BYTES, parse_model, read_bytes

_WORTH_A_WARNING = 0.01  # of the validation side


def cached_leakage(text: MeasuredText) -> Leakage | None:
    """Return the leakage, cached or measured now; None if its library is not installed."""
    fraction, prepare = text.section.validation_fraction, text.prepare
    recipe = [SHINGLE, NEAR, text.stats.fingerprint, fraction]
    path = cache_directory() / "leakage" / f"{json_key(recipe)}.json"
    kept = _read(path)
    if kept is not None or not has_minhash():
        return kept
    corpus = prepare.with_progress("looking for leakage", text.corpus)
    found = find_leakage(corpus, text.stats, fraction, prepare.check_stop)
    _keep(path, found)
    return found


def leakage_warning(leakage: Leakage, *, is_without_copies: bool) -> Note | None:
    """Return a warning if the leakage is above 1%."""
    if leakage.share <= _WORTH_A_WARNING:
        return None
    seen = f"{leakage.copies} of {leakage.held_out} validation {leakage.units} have"
    if leakage.train_share < 1:
        seen = f"about {leakage.share:.1%} of the validation {leakage.units} have"
    return Note(
        f"{seen} a near copy among those trained on: the validation loss will come out too low"
        + ("" if is_without_copies else "; --set data.duplicates=drop_near leaves copies out"),
        is_warning=True,
    )


def _read(path: Path) -> Leakage | None:
    try:
        kept = parse_model(Leakage, read_bytes(path, JSON_BYTES))
    except (OSError, UsageError, ValueError):
        return None
    is_possible = 0 < kept.train_share <= 1 and 0 <= kept.copies <= kept.held_out
    return kept if is_possible else None


def _keep(path: Path, leakage: Leakage) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(path, json.dumps(asdict(leakage)) + "\n")
    except OSError:
        return  # it is measured again the next time
