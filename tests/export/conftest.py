"""Models of every form with weights that make permutations show, and tokenizers of every kind."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import tokenizers
import torch
from tokenizers import pre_tokenizers, trainers

from llmtrain.export.encoding import Encoding
from llmtrain.export.gguf_file import TextEnds, write_gguf
from llmtrain.export.gguf_vocabulary import Vocabulary, vocabulary_of
from llmtrain.export.provenance import Provenance
from llmtrain.export.verify import Verification, verify
from llmtrain.model.decoder import Decoder
from llmtrain.profile.schema import ModelSection
from llmtrain.profile.shape import shape_of
from llmtrain.tokenizer import Tokenizer, train_tokenizer
from llmtrain.tokenizer.importing import ImportOptions, import_tokenizer

PROVENANCE = Provenance(name="tiny", llmtrain_version="0", checkpoint_sha256="0" * 64)


@pytest.fixture(scope="session")
def text() -> str:
    """Words, numbers, code and other scripts."""
    draw = random.Random(0)
    words = [
        "the",
        "model",
        "learns",
        "don't",
        "I'll",
        "naïve",
        "中文",
        "привет",
        "x1",
        "2026",
        "==",
    ]
    words += ["".join(draw.choices("abcdefghij", k=draw.randint(2, 7))) for _ in range(200)]
    ends = (" ", " ", " ", "  ", "\n", ", ", ".\n\n", "\t")
    return "".join(draw.choice(words) + draw.choice(ends) for _ in range(3000))


@pytest.fixture(scope="session")
def own_tokenizer(text: str) -> Tokenizer:
    return train_tokenizer([text], vocab_size=500).tokenizer


ByteLevel = Callable[[str], Tokenizer]


@pytest.fixture(scope="session")
def byte_level(text: str, tmp_path_factory: pytest.TempPathFactory) -> ByteLevel:
    """Returns an imported byte-level BPE tokenizer that splits text by a pattern first."""

    def make(pattern: str) -> Tokenizer:
        split = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
        in_letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        library = tokenizers.Tokenizer(tokenizers.models.BPE())
        library.pre_tokenizer = pre_tokenizers.Sequence([split, in_letters])
        library.decoder = tokenizers.decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=700,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=["<|endoftext|>"],
        )
        numbers = " ".join(map(str, range(1000, 3000, 7)))  # merges of digits
        library.train_from_iterator([text, numbers, "YOU'LL DON'T HelloWorld fooBar\n"], trainer)
        path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
        library.save(str(path))
        return import_tokenizer(path, ImportOptions()).tokenizer

    return make


def model_of(rows: int, **values: object) -> Decoder:
    """Return a model of which each weight and position matters for the probabilities."""
    section = {
        "vocab_size": rows,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 4,
        "head_dim": 16,
        "context": 128,
        **values,
    }
    model = Decoder(shape_of(ModelSection.model_validate(section))).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(
                1 + noise / 4 if weight.dim() == 1 else noise * 2.5 / weight.shape[-1] ** 0.5
            )
            if "embed_tokens" in name or "lm_head" in name:
                weight.mul_(0.4)
    return model


@dataclass(frozen=True)
class Exporter:
    """Writes a GGUF file and lets llama.cpp read it."""

    directory: Path
    sample: str

    def write(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        encoding: Encoding = "f32",
        vocabulary: Vocabulary | None = None,
    ) -> Path:
        path = self.directory / f"{encoding}.gguf"
        vocabulary = vocabulary or vocabulary_of(tokenizer, model.shape.vocab_size)
        weights = {name: each.data for name, each in model.named_parameters()}
        write_gguf(
            *(path, weights, model.shape, vocabulary, TextEnds.of(tokenizer)),
            *(PROVENANCE, encoding, lambda: None),
        )
        return path

    def verify(
        self, path: Path, model: Decoder, tokenizer: Tokenizer, encoding: Encoding = "f32"
    ) -> Verification:
        known = vocabulary_of(tokenizer, model.shape.vocab_size)
        return verify(
            "gguf",
            path,
            model,
            tokenizer,
            encoding,
            self.sample,
            1,
            lambda: None,
            known.differs,
            known.known_differences,
        )


@pytest.fixture
def exporter(tmp_path: Path, text: str) -> Exporter:
    return Exporter(tmp_path, text)
