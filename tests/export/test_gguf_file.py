from __future__ import annotations

import re

import gguf
import numpy as np
import pytest

from llmtrain.export.gguf_file import gguf_file_name
from llmtrain.export.gguf_tensors import interleave_halves, read_weights, separate_halves
from llmtrain.tokenizer import Tokenizer
from tests.export.conftest import Exporter, model_of

# From the specification of the format.
_NAME = re.compile(
    r"^(?P<BaseName>[A-Za-z0-9\s]*(?:(?:-(?:(?:[A-Za-z\s][A-Za-z0-9\s]*)|(?:[0-9\s]*)))*))-"
    r"(?:(?P<SizeLabel>(?:\d+x)?(?:\d+\.)?\d+[A-Za-z](?:-[A-Za-z]+(\d+\.)?\d+[A-Za-z]+)?)"
    r"(?:-(?P<FineTune>[A-Za-z0-9\s-]+))?)?-(?:(?P<Version>v\d+(?:\.\d+)*))"
    r"(?:-(?P<Encoding>(?!LoRA|vocab)[\w_]+))?(?:-(?P<Type>LoRA|vocab))?"
    r"(?:-(?P<Shard>\d{5}-of-\d{5}))?\.gguf$"
)


@pytest.mark.parametrize("name", ["cpu-small-20261129-023000", "my_run.v2", "é"])
def test_files_have_names_by_the_convention(name: str) -> None:
    match = _NAME.match(gguf_file_name(name, 25_400_000, "q8_0"))
    assert match is not None
    assert match["SizeLabel"] == "25M"
    assert match["Encoding"] == "Q8_0"


def test_rows_come_back_in_their_order() -> None:
    rows = np.arange(4 * 6 * 3).reshape(24, 3)
    interleaved = interleave_halves(rows, 4)
    assert (interleaved[:4, 0] // 3).tolist() == [0, 3, 1, 4]
    assert (separate_halves(interleaved, 4) == rows).all()


def test_a_file_holds_the_weights_and_where_they_are_from(
    exporter: Exporter, own_tokenizer: Tokenizer
) -> None:
    model = model_of(512, qk_norm=False, tie_embeddings=False, num_kv_heads=2)
    path = exporter.write(model, own_tokenizer)

    weights = dict(model.named_parameters())
    found = dict(read_weights(path, model.shape))
    assert found.keys() == weights.keys()
    assert all((found[name] == weights[name].detach().numpy()).all() for name in weights)
    fields = gguf.GGUFReader(path).fields
    assert fields["general.architecture"].contents() == "llama"
    assert fields["llmtrain.checkpoint.sha256"].contents() == "0" * 64
    assert fields["general.license"].contents() == "unknown"
    assert fields["llama.context_length"].contents() == 128


def test_few_bits_spare_gains_embeddings_and_rows_that_are_no_blocks(
    exporter: Exporter, own_tokenizer: Tokenizer
) -> None:
    model = model_of(512, intermediate_size=80)
    reader = gguf.GGUFReader(exporter.write(model, own_tokenizer, "q4_0"))

    kinds = {each.name: each.tensor_type.name for each in reader.tensors}
    assert kinds["token_embd.weight"] == "Q8_0"
    assert kinds["blk.0.attn_q.weight"] == "Q4_0"
    assert kinds["blk.0.ffn_down.weight"] == "F16"
    assert kinds["blk.0.attn_norm.weight"] == "F32"
