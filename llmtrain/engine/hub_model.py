"""`hf://OWNER/NAME[@REVISION]`: a model of the Hugging Face Hub, in Hugging Face's own cache."""

from __future__ import annotations

import os
import re
from pathlib import Path

from llmtrain.errors import LlmtrainError, UsageError

_SCHEME = "hf://"
_MODEL = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", re.ASCII)
# Weights in safetensors, and what tokenizers are read from; never pickled weights or code.
_FILES = (
    *("config.json", "*.safetensors", "model.safetensors.index.json"),
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "tokenizer_kind.json"),
    *("vocab.json", "merges.txt"),
)


def is_hub_model(name: str) -> bool:
    """Return whether `name` begins with `hf://`."""
    return name.lower().startswith(_SCHEME)


def fetch_model(name: str) -> Path:
    """Return the directory of the model's files, fetched unless they are in the cache.

    Raises UsageError, and LlmtrainError where the Hub cannot be reached.
    """
    match = _MODEL.fullmatch(name[len(_SCHEME) :])
    if match is None:
        raise UsageError(
            f"{name} does not name a model of the Hub", hint="write hf://OWNER/NAME[@REVISION]"
        )
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError:
        raise UsageError(
            f"{name} needs the package huggingface_hub, which is not installed",
            hint="pip install 'llmtrain[hf]'",
        ) from None
    try:
        return Path(snapshot_download(match[1], revision=match[2], allow_patterns=list(_FILES)))
    except HfHubHTTPError as error:
        why = str(error).strip().splitlines()[0][:200]
        raise UsageError(
            f"{name} does not exist, or may not be read: {why}",
            hint="where it is private or gated: HF_TOKEN=… or hf auth login, and accept its terms",
        ) from None
    except (LocalEntryNotFoundError, OSError) as error:
        offline = "unset HF_HUB_OFFLINE" if os.environ.get("HF_HUB_OFFLINE") else None
        raise LlmtrainError(
            f"{name} cannot be reached: {str(error).strip().splitlines()[0][:200]}",
            hint=offline or "check the network, or name a directory that holds the model",
        ) from None
