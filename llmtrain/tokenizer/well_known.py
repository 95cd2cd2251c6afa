"""Well-known tokenizers in the local caches of other programs. Nothing is downloaded."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from llmtrain.errors import LlmtrainError
from llmtrain.tokenizer.importing import ImportOptions, import_tokenizer
from llmtrain.tokenizer.tokenizer import Tokenizer

_RANKS = ("cl100k_base", "o200k_base")
_RANKS_ADDRESS = "https://openaipublic.blob.core.windows.net/encodings/{}.tiktoken"
_MODELS = (
    "openai-community/gpt2",
    "meta-llama/Meta-Llama-3-8B",
    "meta-llama/Llama-3.1-8B",
    "Qwen/Qwen3-0.6B",
    "Qwen/Qwen3-8B",
    "mistralai/Mistral-7B-v0.1",
)


def well_known_tokenizers() -> dict[str, Tokenizer]:
    """Return the tokenizers found, by name; those that cannot be imported are left out."""
    found = {}
    for name, path, options in (*_cached_ranks(), *_cached_models()):
        try:
            found[name] = import_tokenizer(path, options).tokenizer
        except LlmtrainError:
            continue  # an unusable file in another program's cache is not an error here
    return found


def _cached_ranks() -> Iterator[tuple[str, Path, ImportOptions]]:
    """Yield name, path and options of rank files in tiktoken's cache.

    The cache names each file after the SHA-1 of its URL.
    """
    chosen = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
    cache = Path(chosen) if chosen else Path(tempfile.gettempdir(), "data-gym-cache")
    for name in _RANKS:
        address = _RANKS_ADDRESS.format(name).encode()
        path = cache / hashlib.sha1(address, usedforsecurity=False).hexdigest()
        if path.is_file():
            yield name, path, ImportOptions(pattern=name, allow_lossy=True)


def _cached_models() -> Iterator[tuple[str, Path, ImportOptions]]:
    """Yield name, path and options of tokenizer.json files in Hugging Face's cache.

    The cache has a directory for each model, with a subdirectory for each revision.
    """
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    for name in _MODELS:
        directory = cache / f"models--{name.replace('/', '--')}" / "snapshots"
        for path in sorted(directory.glob("*/tokenizer.json"))[:1]:
            yield name, path, ImportOptions(allow_lossy=True)
