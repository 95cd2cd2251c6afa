"""What is read as JSON, YAML, a model or weights and is something else is named as what it is."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from llmtrain.errors import LlmtrainError
from llmtrain.magic import other_content
from llmtrain.profile.load import profile_layer
from llmtrain.tokenizer.importing import ImportOptions, import_tokenizer
from llmtrain.train.checkpoint.tensors import read_shapes
from llmtrain.untrusted import read_json

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1234\n"
OTHERS = {
    "Git LFS pointer": POINTER,
    "gzip": gzip.compress(b"{}" * 300),
    "zip": b"PK\x03\x04" + bytes(300),
    "PDF": b"%PDF-1.7\n" + b"text " * 60,
    "web page": b"\n<!DOCTYPE html><title>Not Found</title>" + b" " * 300,
}


READERS: dict[str, Callable[[Path], object]] = {
    "config.json": read_json,
    "tokenizer.json": lambda path: import_tokenizer(path, ImportOptions()),
    "tokenizer.model": lambda path: import_tokenizer(path, ImportOptions()),
    "model.safetensors": read_shapes,
    "p.yaml": lambda path: profile_layer(str(path)),
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("name", READERS)
def test_another_kind_of_file_is_named_by_whatever_reads_it(
    kind: str, name: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(OTHERS[kind])

    with pytest.raises((LlmtrainError, ValueError), match=f"it is an? {kind}"):
        READERS[name](path)


def test_an_empty_file_of_json_is_called_empty(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"")

    with pytest.raises(ValueError, match="it is empty"):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize("content", [b'{"a": 1}', b"name: x\n", json.dumps("é" * 5000).encode()])
def test_text_is_not_taken_for_another_kind(content: bytes) -> None:
    assert other_content(content) is None
