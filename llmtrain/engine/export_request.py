"""What is to be exported, and what of it is refused before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmtrain.errors import UsageError
from llmtrain.export import huggingface_directory
from llmtrain.export.encoding import UNQUANTIZED, Encoding, Format
from llmtrain.export.hub import require_push
from llmtrain.export.model_card import CARD
from llmtrain.export.provenance import LICENSE_PLACEHOLDER
from llmtrain.export.verify import require_reader

_REPLACEABLE = {
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer.model"),
    *("tokenizer_config.json", "tokenizer_kind.json"),
    *(huggingface_directory.WEIGHTS, huggingface_directory.CHAT_TEMPLATE, CARD),
}


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """The model to export, the format, and the options."""

    run: str
    format: Format
    encoding: Encoding = "f32"
    out: Path | None = None
    data: Sequence[str] = ()
    ollama: bool = False
    verify: bool | None = None  # None: where the program that reads it is installed
    license: str = LICENSE_PLACEHOLDER
    overwrite: bool = False
    push: str | None = None


def require_possible(request: ExportRequest) -> None:
    """Raise UsageError for options that do not go together, or need what is not installed."""
    if request.format == "hf" and request.encoding not in UNQUANTIZED:
        raise UsageError(
            f"--quant {request.encoding} is an encoding of GGUF, and --format hf has "
            f"{', '.join(UNQUANTIZED)}",
            hint="--format gguf, or another --quant",
        )
    if request.ollama and request.format == "hf":
        raise UsageError("--ollama needs a GGUF file", hint="--format gguf")
    if request.format == "gguf":
        try:
            import gguf  # noqa: F401
        except ModuleNotFoundError:
            raise UsageError(
                "--format gguf needs the package gguf, which is not installed",
                hint="pip install 'llmtrain[export]'",
            ) from None
    if request.verify:
        require_reader(request.format)
    if request.push is not None:
        require_push(request.push)


def require_replaceable(directory: Path) -> None:
    """Raise UsageError if the directory holds anything that an export does not write."""
    other = sorted(path.name for path in directory.iterdir() if path.name not in _REPLACEABLE)
    if other:
        raise UsageError(
            f"{directory} is not replaced: {other[0]} is not of an export",
            hint="--out DIR, of a directory that does not exist",
        )
