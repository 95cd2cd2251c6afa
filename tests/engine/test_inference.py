"""Evaluation of a long text: the same result as of the whole at once, in bounded memory."""

from __future__ import annotations

import argparse
import bz2
import inspect
import lzma
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from llmtrain.data.shards.prepared import PreparedData
from llmtrain.data.shards.token_stream import TokenArray, TokenStream
from llmtrain.data.sources.resolve import resolve_sources
from llmtrain.engine import evaluation
from llmtrain.engine.evaluation import evaluate_corpus, evaluate_shards
from llmtrain.engine.inference import Trained, generate_text
from llmtrain.engine.plan_run import plan_inference
from llmtrain.generate.sampling import Sampling
from llmtrain.model.decoder import Decoder
from llmtrain.prepare.context import PrepareContext
from llmtrain.profile.schema import DeviceSection, ModelSection
from llmtrain.profile.shape import shape_of
from llmtrain.tokenizer import Tokenizer, streams
from tests.data.fixed import TOKENIZER
from tests.shards import prepared_shards

CONTEXT, LARGEST = 16, 4_000
WORK = PrepareContext(1, print, lambda: None)


@pytest.fixture(scope="module")
def trained() -> Trained:
    tokenizer = Tokenizer.load(TOKENIZER)
    section = ModelSection(
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        intermediate_size=32,
        num_layers=1,
        num_heads=2,
        context=CONTEXT,
    )
    torch.manual_seed(0)
    shape = shape_of(section)
    plan = plan_inference(DeviceSection(kind="cpu", precision="fp32"), shape)
    return Trained(Decoder(shape).eval(), tokenizer, TOKENIZER, plan, None)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(
        inspect.getsource(argparse)[:80_000] + "中é word and text 😀\n" * 500, encoding="utf-8"
    )
    return path


@pytest.fixture
def shards(text: Path, trained: Trained, tmp_path: Path) -> Iterator[PreparedData]:
    corpus, cache = resolve_sources([str(text)]), tmp_path / "cache"
    with prepared_shards(corpus, trained.tokenizer, cache, validation_fraction=0.5) as prepared:
        yield prepared


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of ids that were read, decoded or encoded at once, in small parts."""
    found: list[int] = []
    read, encode, decode = TokenStream.read, Tokenizer.encode, Tokenizer.decode

    def spied_read(self: TokenStream, start: int, count: int) -> TokenArray:
        found.append(count)
        return read(self, start, count)

    def spied_encode(self: Tokenizer, text: str) -> list[int]:
        ids = encode(self, text)
        found.append(len(ids))
        return ids

    def spied_decode(self: Tokenizer, ids: Sequence[int]) -> str:
        found.append(len(ids))
        return decode(self, ids)

    monkeypatch.setattr(TokenStream, "read", spied_read)
    monkeypatch.setattr(Tokenizer, "encode", spied_encode)
    monkeypatch.setattr(Tokenizer, "decode", spied_decode)
    monkeypatch.setattr(evaluation, "READ_TOKENS", 100)
    monkeypatch.setattr(streams, "_PART_IDS", LARGEST // 8)
    monkeypatch.setattr(streams, "_PART_CHARACTERS", LARGEST // 8)
    return found


def test_shards_are_evaluated_in_parts(
    trained: Trained, shards: PreparedData, sizes: list[int]
) -> None:
    stream = shards.validation
    everything = trained.tokenizer.decode(stream.read(0, stream.num_tokens).tolist()).encode()
    sizes.clear()
    found = evaluate_shards(trained, shards, WORK)
    assert max(sizes) <= LARGEST < stream.num_tokens / 5
    assert found.tokens == stream.num_tokens - 1
    assert found.bytes == len(everything)
    assert found.baselines.gzip_bpb == 8 * len(zlib.compress(everything, 9)) / len(everything)
    assert found.baselines.bzip2_bpb == 8 * len(bz2.compress(everything, 9)) / len(everything)
    assert found.baselines.xz_bpb == 8 * len(lzma.compress(everything, preset=6)) / len(everything)


def test_text_is_evaluated_in_parts(trained: Trained, text: Path, sizes: list[int]) -> None:
    corpus = resolve_sources([str(text)])
    whole = trained.tokenizer.encode(text.read_text(encoding="utf-8"))
    sizes.clear()
    found = evaluate_corpus(trained, corpus, WORK)
    assert max(sizes) <= LARGEST < len(whole) / 5
    assert found.tokens == len(whole) + 1
    data = text.read_bytes()
    assert found.bytes == len(data)
    assert found.baselines.xz_bpb == 8 * len(lzma.compress(data, preset=6)) / len(data)


@pytest.mark.parametrize("prompt", ["", "def ", "中é ", "retur"])
def test_text_after_a_prompt_begins_with_it(trained: Trained, prompt: str) -> None:
    for sampling in (Sampling(0.0), Sampling(2.0, top_k=10**9, seed=-1)):
        texts = [
            "".join(generate_text(trained, prompt, sampling, 12, lambda: None)) for _ in range(2)
        ]
        assert texts[0] == texts[1]
        assert not texts[0].startswith(prompt) or not prompt  # the continuation alone
