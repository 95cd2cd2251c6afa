"""The token file that every system reads: the shard that `llmtrain train` finds in its cache."""

from __future__ import annotations

import os
import platform
from dataclasses import replace
from pathlib import Path

import numpy as np

from llmtrain.data.shards.build import SHARD_BYTES, unigram_cross_entropy_nats
from llmtrain.data.shards.index import SplitFacts, token_dtype, write_index
from llmtrain.data.shards.prepared import PreparedData
from llmtrain.data.shards.writer import SplitWriter
from llmtrain.data.split import Side
from llmtrain.machine.probe import read_cpu
from llmtrain.prepare.context import PrepareContext
from llmtrain.prepare.dataset import Dataset, prepare_dataset
from llmtrain.profile.load import load_profile
from llmtrain.profile.schema import Profile
from llmtrain.tokenizer import train_tokenizer
from tests.benchmarks.documents import Machine, Prepared, PrepareJob

_SMALL_VOCABULARY = 300
_VALIDATION_SHARE = 16  # one validation token for so many


def prepare_tokens(job: PrepareJob) -> Prepared:
    """The cache holds what the job's profile trains on, and the document says where.

    Random tokens are written over an entry of the cache, so that cache must be the benchmark's.
    """
    profile = load_profile(job.profile, environment=os.environ, assignments=job.assignments).profile
    sources, machine = job.sources, _machine()
    if job.random_tokens is not None:
        sources = (str(_placeholder(job.directory)),)
    dataset = _dataset(job, profile, sources, machine.usable_cores)
    data = dataset.shards
    data.close()
    shard = data.index.train.shards[0]
    dtype = token_dtype(data.index.vocab_size)
    return Prepared(
        machine=machine,
        key=data.index.key,
        tokens_file=data.directory / shard.name,
        dtype=dtype.str,
        tokens=shard.size_bytes // dtype.itemsize,
        sources=sources,
        tokenizer=dataset.tokenizer_directory,
        tokenizer_pieces=dataset.tokenizer.vocab_size,
    )


def _dataset(job: PrepareJob, profile: Profile, sources: tuple[str, ...], threads: int) -> Dataset:
    section = profile.data.model_copy(update={"sources": sources})
    work = PrepareContext(threads, observe=lambda event: None, check_stop=lambda: None)
    if job.random_tokens is None:
        return prepare_dataset(section, profile.model.vocab_size, work)
    texts = [Path(source).read_text(encoding="utf-8") for source in sources]
    tokenizer = job.directory / "tokenizer"
    train_tokenizer(texts, vocab_size=_SMALL_VOCABULARY).tokenizer.save(tokenizer)
    section = section.model_copy(update={"tokenizer": str(tokenizer)})
    empty = prepare_dataset(section, profile.model.vocab_size, work).shards
    empty.close()  # mapped files cannot be written over on Windows
    fill_randomly(empty, profile.model.vocab_size, job.random_tokens, job.seed)
    return prepare_dataset(section, profile.model.vocab_size, work)


def fill_randomly(data: PreparedData, vocab_size: int, tokens: int, seed: int) -> None:
    """The entry of the cache holds `tokens` ids drawn evenly from the vocabulary, under its key."""
    draw = np.random.default_rng(seed)
    directory, index = data.directory, data.index
    sizes: tuple[tuple[Side, int], ...] = (
        ("train", tokens),
        ("validation", -(-tokens // _VALIDATION_SHARE)),
    )
    sides, counts = {}, {}
    for side, size in sizes:
        with SplitWriter(directory, side, vocab_size, SHARD_BYTES) as writer:
            writer.append(draw.integers(vocab_size, size=size, dtype=np.int64))
            counts[side] = writer.counts
            sides[side] = _as_text(writer.finish())
    write_index(
        directory,
        replace(
            index,
            dtype=token_dtype(vocab_size).name,
            vocab_size=vocab_size,
            unigram_cross_entropy_nats=unigram_cross_entropy_nats(
                counts["train"], counts["validation"]
            ),
            train=sides["train"],
            validation=sides["validation"],
        ),
    )


def _as_text(facts: SplitFacts) -> SplitFacts:
    """As if every token were a byte: no text is behind random tokens, and bits per byte divide."""
    return replace(facts, text_bytes=facts.tokens, documents=1)


def _placeholder(directory: Path) -> Path:
    """A text that random tokens take the place of."""
    path = directory / "text.txt"
    lines = (f"line {number} of a text whose tokens are replaced" for number in range(1000))
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def _machine() -> Machine:
    cpu = read_cpu()
    return Machine(
        cpu=cpu.model,
        architecture=cpu.architecture,
        system=platform.platform(),
        isa=cpu.isa,
        logical_cores=cpu.logical_cores,
        physical_cores=cpu.physical_cores,
        usable_cores=cpu.usable_cores,
        memory_bytes=cpu.usable_memory_bytes,
    )
