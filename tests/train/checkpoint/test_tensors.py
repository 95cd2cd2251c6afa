"""A tensor file gives back what was written, or is refused before memory is taken for it."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llmtrain.errors import UsageError
from llmtrain.train.checkpoint import tensors
from llmtrain.train.checkpoint.tensors import read_shapes, read_tensors, write_tensors

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "step": torch.tensor(3.0), "b": torch.ones(0)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.safetensors"
    write_tensors(path, TENSORS)
    return path


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        found[name].dtype == torch.float32
        and found[name].shape == expected[name].shape
        and found[name].view(torch.uint8 if found[name].dim() else torch.float32).tolist()
        == expected[name]
        .contiguous()
        .view(torch.uint8 if expected[name].dim() else torch.float32)
        .tolist()
        for name in expected
    )


def test_tensors_are_read_as_they_were_written(file: Path) -> None:
    assert same(read_tensors(file), TENSORS)
    assert read_shapes(file) == {"a.weight": (2, 3), "step": (), "b": (0,)}


def test_special_values_survive(tmp_path: Path) -> None:
    odd = torch.tensor([-0.0, 1e-45, torch.finfo(torch.float32).max, torch.inf, torch.nan])
    tensors = {"turned": torch.arange(6.0).view(2, 3).t(), "odd": odd}
    write_tensors(tmp_path / "a", tensors)
    assert same(read_tensors(tmp_path / "a"), tensors)


@pytest.mark.parametrize(
    "tensors", [{"a": torch.ones(2).half()}, {"a": torch.arange(2)}, {"../a": torch.ones(2)}]
)
def test_what_could_not_be_read_is_not_written(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="tensor files are fp32"):
        write_tensors(tmp_path / "a", tensors)
    assert not (tmp_path / "a").exists()


def rewritten(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """The same data under a changed header."""
    whole = file.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])


def setting(name: str, **values: object) -> Callable[[dict[str, Any]], object]:
    return lambda header: header[name].update(values)


HEADERS: dict[str, Callable[[dict[str, Any]], object]] = {
    "missing tensor": lambda header: header.pop("a.weight"),
    "one more": lambda header: header.update(c=header["a.weight"]),
    "overlap": setting("step", data_offsets=[20, 24]),
    "beyond the end": setting("a.weight", data_offsets=[4, 10**15]),
    "negative": setting("a.weight", data_offsets=[-4, 20]),
    "reversed": setting("a.weight", data_offsets=[24, 0]),
    "three offsets": setting("a.weight", data_offsets=[0, 24, 24]),
    "offsets are floats": setting("a.weight", data_offsets=[4.0, 28.0]),
    "offsets are text": setting("a.weight", data_offsets="ab"),
    "shape too large": setting("a.weight", shape=[2**31, 2**31]),
    "shape overflows": setting("a.weight", shape=[2**63, 2**63, 0, 2]),
    "negative shape": setting("a.weight", shape=[-2, -3]),
    "boolean shape": setting("a.weight", shape=[True, 6]),
    "no shape": setting("a.weight", shape=None),
    "many dimensions": setting("a.weight", shape=[1] * 60 + [6]),
    "other dtype": setting("a.weight", dtype="F64"),
    "integer dtype": setting("a.weight", dtype="I32"),
    "no dtype": setting("a.weight", dtype=None),
    "unknown dtype": setting("a.weight", dtype="PICKLE"),
    "extra field": setting("a.weight", code="os.system"),
    "tensor is a list": lambda header: header.update({"a.weight": [1]}),
    "odd name": lambda header: header.update({"../../a": header.pop("a.weight")}),
    "empty name": lambda header: header.update({"": header.pop("a.weight")}),
    "metadata is no text": lambda header: header.update({"__metadata__": {"a": [1]}}),
    "metadata is a list": lambda header: header.update({"__metadata__": [1]}),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_lies_is_refused(file: Path, name: str) -> None:
    rewritten(file, HEADERS[name])
    with pytest.raises(ValueError, match=r".") as caught:
        read_tensors(file)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 7,
        b"\0" * 8,
        struct.pack("<Q", 2**64 - 1) + b"{}",
        struct.pack("<Q", 3) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 4) + b"null",
        struct.pack("<Q", 2) + b"\xff\xfe",
        struct.pack("<Q", 100_000) + b"[" * 100_000,
        struct.pack("<Q", 2) + b"{}" + b"extra",
        pickle.dumps({"a": 1}),
        b"PK\x03\x04" + b"\0" * 100,
    ],
    ids=lambda content: repr(content[:12]),
)
def test_what_is_no_tensor_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"."):
        read_tensors(path)


def test_a_long_header_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 5 << 20))
        file.truncate(1 << 40)
    monkeypatch.setattr(tensors, "parse_json", None)
    with pytest.raises(ValueError, match="5242880 bytes; at most 4194304"):
        read_shapes(path)


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_link_is_not_followed(file: Path) -> None:
    link = file.with_name("link")
    link.symlink_to(file)
    with pytest.raises(UsageError, match="symbolic link"):
        read_tensors(link)


def test_any_damage_is_noticed_or_changes_values_alone(file: Path) -> None:
    whole = file.read_bytes()

    @settings(max_examples=150, derandomize=True)
    @given(st.integers(0, len(whole) - 1), st.integers(0, 255), st.integers(0, len(whole)))
    def law(place: int, byte: int, end: int) -> None:
        file.write_bytes((whole[:place] + bytes([byte]) + whole[place + 1 :])[:end])
        try:
            found = read_tensors(file)
        except ValueError:
            return
        assert sum(tensor.numel() for tensor in found.values()) == 7
        assert end == len(whole)

    law()
