"""Models that were exported."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import Self

from llmtrain.documents.base import Document, Number, Part, Text, key
from llmtrain.files import sha256_file

if TYPE_CHECKING:
    from llmtrain.engine.export_run import Exported


class ExportedFile(Part):
    """A file that was written."""

    name: Text = key("in `directory`")
    bytes: int = key("its size")
    sha256: Text = key("of its contents")


class Verification(Part):
    """How another program that read the model differs from llmtrain in fp32."""

    program: Text = key("llama.cpp or transformers")
    program_version: Text = key("of its Python package")
    texts: int = key("whose ids are equal")
    tokens: int = key("of these texts")
    log_probabilities: int = key("of the likeliest tokens, that were compared")
    mean_difference_nats: Number = key("mean absolute difference of these")
    largest_difference_nats: Number = key("the largest")
    greedy_tokens: int = key("taken greedily by both")
    known_differences: list[Text] = key("text that has other ids, which was not compared")


class Cost(Part):
    """The cost of the encoding: the loss with the weights as the file holds them, in fp32."""

    text: Text = key("what was measured on")
    text_bytes: int = key("how much of it")
    bits_per_byte_before: Number = key("with the weights in fp32")
    bits_per_byte_after: Number = key("with the exported ones")
    bytes_before: int = key("of the weights in fp32")
    bytes_after: int = key("of the exported files")


class Export(Document):
    """`llmtrain export`: a model for other programs."""

    checkpoint: Text = key("what was exported")
    format: Text = key("gguf or hf")
    encoding: Text = key("of matrices: f32, f16, bf16, q8_0 …")
    parameters: int = key("of the model")
    directory: Text = key("where the files are")
    files: list[ExportedFile] = key("in order of name; of GGUF the model first")
    verification: Verification | None = key("null: no other program has read it")
    cost: Cost | None = key("null: fp32 loses nothing")
    pushed: Text | None = key("the address of the repository; null: without `--push`")

    @classmethod
    def of_exported(cls, exported: Exported) -> Self:
        """Return the document of an export."""
        files = [
            ExportedFile.of(name=path.name, bytes=path.stat().st_size, sha256=sha256_file(path))
            for path in exported.files
        ]
        return cls.of(exported, files=files)
