"""What a run read: sources, lengths, copies, languages, and how the tokenizer cuts text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llmtrain.data.corpus_stats import LENGTH_SHARES
from llmtrain.data.quality.languages import LanguageDetector, has_language_detector
from llmtrain.data.shards.prepared import entry_directory, open_prepared
from llmtrain.data.shards.token_stream import TokenStream
from llmtrain.errors import LlmtrainError
from llmtrain.files import cache_directory
from llmtrain.profile.load import flat_values
from llmtrain.report.values import Row, count, known, shown, size
from llmtrain.tokenizer import Tokenizer, TokenizerReport, inspect_tokenizer
from llmtrain.train.checkpoint.names import list_checkpoints
from llmtrain.train.run_directory.directory import RunDirectory
from llmtrain.units import counted

_PLACES = 200  # in the training text, at which languages are detected
_READ_TOKENS = 2048  # from each: about the 4,000 characters that are judged
_MOST_LANGUAGES = 6
_NO_LANGUAGE = ("und", "zxx")  # ISO 639
_LENGTHS = {0.05: "5%", 0.25: "25%", 0.5: "50%", 0.75: "75%", 0.95: "95%"}
_PIECES_SHOWN = 8


def data_rows(record: Mapping[str, Any], languages: Mapping[str, int] | None) -> Iterator[Row]:
    """Yield what was read, how long and how often, and what was left out."""
    data = record.get("data") or {}
    for source in data.get("sources") or []:
        if isinstance(source, Mapping):
            files = counted(round(known(source.get("files")) or 0), "file")
            yield "text", f"{source.get('spec')}: {source.get('kind', 'text')}, {files}"
            for reason, number in flat_values(source.get("skipped") or {}):
                yield "not read", f"{reason}: {shown(number)}"
    for each in data.get("left_out") or []:
        if isinstance(each, Mapping):
            words = (f"{name.replace('_', ' ')} {shown(v)}" for name, v in flat_values(each))
            yield "left out", ", ".join(words)
    if isinstance(documents := data.get("documents"), Mapping):
        yield from _document_rows(documents)
    if languages:
        yield "languages", _languages_in_words(languages)
    yield from _side_rows(data)
    leakage = data.get("leakage")
    if isinstance(leakage, Mapping):
        yield (
            "validation text that training text holds too",
            f"{leakage.get('copies')} of {leakage.get('held_out')} {leakage.get('units')}",
        )


def _document_rows(documents: Mapping[str, Any]) -> Iterator[Row]:
    total, text_bytes = known(documents.get("documents")), known(documents.get("text_bytes"))
    if total is not None and text_bytes is not None:
        yield "documents", f"{count(total)}, {size(text_bytes)} of text"
    lengths = [known(each) for each in documents.get("length_bytes") or []]
    if len(lengths) == len(LENGTH_SHARES) and total:
        at = dict(zip(LENGTH_SHARES, lengths, strict=True))
        within = ", ".join(f"{name} up to {size(at[share])}" for share, name in _LENGTHS.items())
        yield "lengths", f"{size(at[0.0])} to {size(at[1.0])}; {within}"
    copies = known(documents.get("repeated_documents"))
    if copies is not None and total:
        share = (known(documents.get("repeated_bytes")) or 0.0) / max(1.0, text_bytes or 0.0)
        yield "equal to an earlier document", f"{count(copies)} of {count(total)}, {share:.1%}"


def _side_rows(data: Mapping[str, Any]) -> Iterator[Row]:
    for side in ("train", "validation"):
        tokens = known(data.get(f"{side}_tokens"))
        if tokens is None:
            continue
        text_bytes = known(data.get(f"{side}_text_bytes"))
        rate = ""
        if text_bytes and tokens:
            rate = f" of {size(text_bytes)}, {text_bytes / tokens:.2f} bytes each"
        yield f"{side} tokens", count(tokens) + rate


def _languages_in_words(languages: Mapping[str, int]) -> str:
    total = sum(languages.values())
    names = Counter[str]()
    for code, number in languages.items():
        names["none, or code" if code in _NO_LANGUAGE else code] += number
    first = names.most_common(_MOST_LANGUAGES)
    words = [f"{name} {value / total:.0%}" for name, value in first]
    rest = total - sum(value for _, value in first)
    words += [f"others {rest / total:.0%}"] if rest else []
    return f"{', '.join(words)} (of {counted(total, 'place')} in the text)"


def detected_languages(run: RunDirectory, record: Mapping[str, Any]) -> dict[str, int] | None:
    """Return how often each language is found at places all over the training text.

    None where the detector is not installed, or the run's shards or tokenizer are not at hand.
    """
    key = str((record.get("data") or {}).get("key", ""))
    directory = _newest_checkpoint(run)
    is_text = (record["profile"].get("data") or {}).get("rows", "text") == "text"
    if directory is None or not key.isalnum() or not is_text or not has_language_detector():
        return None
    try:
        tokenizer = Tokenizer.load(directory)
        with open_prepared(entry_directory(cache_directory(), key)) as shards:
            if shards.index.encoder_fingerprint != tokenizer.fingerprint:
                return None
            texts = list(_texts(shards.train, tokenizer))
    except LlmtrainError:
        return None
    detector = LanguageDetector()
    found = Counter(detector.language(text) for text in texts)
    return dict(found.most_common())


def _texts(stream: TokenStream, tokenizer: Tokenizer) -> Iterator[str]:
    """Yield the text at evenly spaced places, each up to the end of its document."""
    for start in np.unique(np.arange(_PLACES) * (stream.num_tokens - 1) // _PLACES).tolist():
        ids = stream.read(start, min(_READ_TOKENS, stream.num_tokens - start))
        ends = np.flatnonzero(ids[1:] == tokenizer.separator_id)
        text = tokenizer.decode(ids[: int(ends[0]) + 1 if len(ends) else None].tolist())
        if text.strip():
            yield text


def tokenizer_rows(run: RunDirectory) -> Iterator[Row]:
    """Yield the kind and size of the run's tokenizer, its longest pieces, and how it cuts text."""
    directory = _newest_checkpoint(run)
    if directory is None:
        return
    try:
        report: TokenizerReport = inspect_tokenizer(Tokenizer.load(directory), {})
    except LlmtrainError:
        return
    yield "kind", "llmtrain's own" if report.kind == "own" else report.kind
    yield "pieces", f"{report.vocab_size:,}"
    yield "between documents", f"{report.separator}, number {report.separator_id}"
    yield "longest pieces", "  ".join(report.longest_pieces[:_PIECES_SHOWN])
    for spelling in report.spellings:
        yield f"cuts {spelling.text!r}", " | ".join(spelling.pieces)


def _newest_checkpoint(run: RunDirectory) -> Path | None:
    found: list[Path] = list_checkpoints(run.checkpoints)
    return found[-1] if found else None
