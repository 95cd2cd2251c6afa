"""Whether every byte of text comes back: `python -m tests.faults.round_trip`.

    python -m tests.faults.round_trip --data builtin:python --data ../shared/data --strings 10000

A tokenizer of each kind is learnt from the text. Then every document of it is encoded and decoded,
and so are so many invented strings; transformers' AutoTokenizer must give the same ids for these
and for so many documents from all over the text. Last, the text is prepared as for training, and
what the shards hold is decoded: bytes are counted, and each of the 256 as often as in the text.
Prints a line of JSON for each kind; exit code 1 where anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from llmtrain.data.corpus import Corpus
from llmtrain.data.shards.token_stream import TokenStream
from llmtrain.data.sources.resolve import resolve_sources
from llmtrain.prepare.context import PrepareContext
from llmtrain.prepare.dataset import prepare_dataset
from llmtrain.profile.schema import DataSection
from llmtrain.tokenizer import Tokenizer, train_tokenizer
from llmtrain.tokenizer.escape import ESCAPE, SPACE_MARK
from llmtrain.tokenizer.training import ModelKind
from llmtrain.tokenizer.word_cache import fastest_encoder

_TRICKY = f"{ESCAPE}{SPACE_MARK} \t\r\n01<>|\u2409\u2585\ufeff"
_READ_TOKENS = 1 << 20
_KINDS: tuple[ModelKind, ...] = ("bpe", "unigram")

Counts = npt.NDArray[np.int64]


def main(arguments: Sequence[str]) -> int:
    """1 where a byte was lost, or an id differs."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.round_trip")
    parser.add_argument("--data", action="append", help="repeatable; default: builtin:python")
    parser.add_argument("--kind", action="append", choices=_KINDS, help="repeatable; default: all")
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--strings", type=int, default=10_000)
    parser.add_argument("--compared", type=int, default=2_000, help="documents")
    values = parser.parse_args(arguments)
    specs = tuple(values.data or ["builtin:python"])
    results = [_checked(kind, specs, values) for kind in values.kind or _KINDS]
    return 0 if all(results) else 1


def _checked(kind: ModelKind, specs: tuple[str, ...], values: argparse.Namespace) -> bool:
    corpus = resolve_sources(specs)
    learnt = train_tokenizer(
        (document.text for document in corpus.documents()), vocab_size=values.vocab_size, kind=kind
    ).tokenizer
    with tempfile.TemporaryDirectory(prefix="llmtrain-round-trip-") as name:
        learnt.save(Path(name) / "tokenizer")
        documents, counts, changed = _documents(corpus, learnt)
        compare = _Compared(learnt, Path(name) / "tokenizer")
        compare.documents(corpus, documents, values.compared)
        compare.strings(values.strings)
        prepared = _prepared(specs, Path(name), learnt)
    record = {
        "kind": kind,
        "documents": documents,
        "bytes": int(counts.sum()),
        "documents_changed": changed,
        "bytes_in_shards": int(prepared.sum()),
        "shards_have_each_byte_as_often": bool((prepared == counts).all()),
        "strings": compare.tried,
        "documents_compared": compare.documents_tried,
        "ids_or_texts_that_differ": compare.different,
    }
    sys.stdout.write(json.dumps(record) + "\n")
    sys.stdout.flush()
    return not changed and not compare.different and bool((prepared == counts).all())


def _documents(corpus: Corpus, tokenizer: Tokenizer) -> tuple[int, Counts, int]:
    """How many there are, how often each byte, and how many did not come back."""
    encode = fastest_encoder(tokenizer)
    documents, changed, counts = 0, 0, np.zeros(256, np.int64)
    for document in corpus.documents():
        ids = np.frombuffer(encode([document.text])[0], np.int32).tolist()
        documents += 1
        changed += tokenizer.decode(ids) != document.text
        counts += _counted(document.text)
    return documents, counts, changed


def _counted(text: str) -> Counts:
    return np.bincount(np.frombuffer(text.encode(), np.uint8), minlength=256)


class _Compared:
    """What transformers makes of texts, beside what the tokenizer makes of them."""

    def __init__(self, tokenizer: Tokenizer, directory: Path) -> None:
        self.tried = self.documents_tried = self.different = 0
        self._tokenizer = tokenizer
        self._foreign = AutoTokenizer.from_pretrained(directory)

    def documents(self, corpus: Corpus, count: int, wanted: int) -> None:
        every = max(1, count // wanted)
        for number, document in enumerate(corpus.documents()):
            if number % every == 0 and self.documents_tried < wanted:
                self.documents_tried += 1
                self._compare(document.text)

    def strings(self, wanted: int) -> None:
        @settings(
            max_examples=wanted,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
        @given(st.text(st.characters(codec="utf-8") | st.sampled_from(_TRICKY)))
        def law(text: str) -> None:
            self.tried += 1
            self._compare(text)

        law()

    def _compare(self, text: str) -> None:
        ids = self._tokenizer.encode(text)
        theirs = self._foreign(text, verbose=False)["input_ids"]
        same = theirs == ids and self._tokenizer.decode(ids) == text
        self.different += not (same and self._foreign.decode(ids) == text)


def _prepared(specs: tuple[str, ...], scratch: Path, tokenizer: Tokenizer) -> Counts:
    """How often each byte is in what the shards hold."""
    section = DataSection.model_validate(
        {"sources": specs, "tokenizer": str(scratch / "tokenizer")}
    )
    work = PrepareContext(2, lambda event: None, lambda: None)
    counts = np.zeros(256, np.int64)
    with patch.dict(os.environ, {"LLMTRAIN_CACHE_DIR": str(scratch / "cache")}):
        shards = prepare_dataset(section, tokenizer.vocab_size, work).shards
    with closing(shards):
        for stream in (shards.train, shards.validation):
            for ids in _read(stream, tokenizer.separator_id):
                counts += _counted(tokenizer.decode(ids))
    return counts


def _read(stream: TokenStream, separator_id: int) -> Iterator[list[int]]:
    """All ids, a document at a time."""
    rest: list[int] = []
    for start in range(0, stream.num_tokens, _READ_TOKENS):
        some = stream.read(start, min(_READ_TOKENS, stream.num_tokens - start))
        *whole, last = np.split(some, np.flatnonzero(some == separator_id))
        for ids in whole:
            yield rest + ids.tolist()
            rest = []
        rest += last.tolist()
    yield rest


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
