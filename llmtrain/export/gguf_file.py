"""Write a GGUF file: metadata, tokenizer, then one tensor after the other.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmtrain.export.encoding import Encoding
from llmtrain.export.gguf_tensors import gguf_tensors, quantization_type, stored_values
from llmtrain.export.gguf_vocabulary import Vocabulary
from llmtrain.export.provenance import Provenance
from llmtrain.profile.shape import ModelShape
from llmtrain.tokenizer import Tokenizer
from llmtrain.tokenizer.chat_template import stop_ids_of

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from torch import Tensor

_VERSION = "v1.0"
_NOT_OF_A_NAME = re.compile(r"[^A-Za-z0-9]+")


@dataclass(frozen=True, slots=True)
class TextEnds:
    """The tokens that begin and end texts and answers."""

    bos_id: int | None
    eos_id: int
    answer_id: int | None  # ends an answer, where eos does not
    adds_bos: bool  # to the beginning of a prompt

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> TextEnds:
        """Return those of a tokenizer and its chat template."""
        answers = sorted(stop_ids_of(tokenizer) - tokenizer.stop_ids)
        others = sorted(tokenizer.stop_ids - {tokenizer.eos_id})
        answer_id = next(iter((*answers, *others)), None)
        return cls(tokenizer.bos_id, tokenizer.eos_id, answer_id, tokenizer.adds_bos)


def gguf_file_name(name: str, parameters: int, encoding: Encoding) -> str:
    """Return the file's name by GGUF's convention: name, size, version, encoding."""
    from gguf.utility import naming_convention, size_label

    base = _NOT_OF_A_NAME.sub("-", name).strip("-") or "model"
    label = size_label(parameters, 0, 0, 0)
    return naming_convention(None, base, None, _VERSION, label, encoding.upper()) + ".gguf"


def write_gguf(
    path: Path,
    weights: Mapping[str, Tensor],
    shape: ModelShape,
    vocabulary: Vocabulary,
    ends: TextEnds,
    provenance: Provenance,
    encoding: Encoding,
    check_stop: Callable[[], None],
) -> None:
    """Write a model to `path`; one tensor at a time is converted."""
    from gguf import GGUFWriter
    from gguf.quants import quant_shape_to_byte_shape

    writer = GGUFWriter(path, "qwen3" if shape.qk_norm else "llama")
    try:
        _add_provenance(writer, provenance, shape, encoding)
        _add_shape(writer, shape)
        _add_vocabulary(writer, vocabulary)
        _add_ends(writer, ends)
        if provenance.chat_template is not None:
            writer.add_chat_template(provenance.chat_template)
        tensors = list(gguf_tensors(shape, encoding))
        for tensor in tensors:
            kind = quantization_type(tensor.encoding)
            size_bytes = math.prod(quant_shape_to_byte_shape(tensor.dims, kind))
            dtype = weights[tensor.weight].detach().cpu().numpy().dtype
            writer.add_tensor_info(tensor.name, tensor.dims, dtype, size_bytes, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            check_stop()
            writer.write_tensor_data(stored_values(tensor, weights))
    finally:
        writer.close()


def _add_provenance(
    writer: GGUFWriter, provenance: Provenance, shape: ModelShape, encoding: Encoding
) -> None:
    from gguf import GGML_QUANT_VERSION, LlamaFileType
    from gguf.utility import size_label

    writer.add_type("model")
    writer.add_name(provenance.name)
    writer.add_basename(provenance.name)
    writer.add_version(_VERSION)
    writer.add_size_label(size_label(shape.parameters, 0, 0, 0))
    writer.add_license(provenance.license)
    writer.add_description(provenance.summary)
    writer.add_tags(["text-generation", "llmtrain"])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    kind = "ALL_F32" if encoding == "f32" else f"MOSTLY_{encoding.upper()}"
    writer.add_file_type(LlamaFileType[kind])
    for key, value in provenance.metadata().items():
        writer.add_string(f"llmtrain.{key}", value)


def _add_shape(writer: GGUFWriter, shape: ModelShape) -> None:
    writer.add_vocab_size(shape.vocab_size)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_block_count(shape.num_layers)
    writer.add_head_count(shape.num_heads)
    writer.add_head_count_kv(shape.num_kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(shape.norm_epsilon)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_rope_dimension_count(shape.head_dim)


def _add_vocabulary(writer: GGUFWriter, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
        writer.add_remove_extra_whitespaces(vocabulary.removes_extra_spaces)
    if vocabulary.merges is not None:
        writer.add_token_merges(vocabulary.merges)
    writer.add_add_space_prefix(vocabulary.adds_space_prefix)


def _add_ends(writer: GGUFWriter, ends: TextEnds) -> None:
    if ends.bos_id is not None:
        writer.add_bos_token_id(ends.bos_id)
    writer.add_eos_token_id(ends.eos_id)
    if ends.answer_id is not None:
        writer.add_eot_token_id(ends.answer_id)
    writer.add_add_bos_token(ends.adds_bos)
    writer.add_add_eos_token(False)
