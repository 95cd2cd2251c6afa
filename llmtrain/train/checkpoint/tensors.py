"""Tensors in safetensors files, whose header is validated before anything else is read.

    8 bytes              length of the header, little-endian
    header               JSON: name → dtype, shape and offsets in the data
    data                 the tensors one after the other, without gaps

Everything that llmtrain saves is fp32. Other programs' files may have half precision, which is read
as fp32.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmtrain.magic import other_content
from llmtrain.untrusted import open_regular, parse_json

# About 130 bytes a tensor: 30,000 of them, which are thousands of layers.
_LONGEST_HEADER_BYTES = 4 << 20
_LENGTH = struct.Struct("<Q")
_HEAD_BYTES = 512
_METADATA = "__metadata__"
_NAME = re.compile(r"[A-Za-z0-9_.]{1,200}")
_MOST_DIMENSIONS = 4
# Bytes of a number, by the dtype's name in a header.
_FP32 = {"F32": 4}
_FLOATS = {**_FP32, "BF16": 2, "F16": 2}

Shape = tuple[int, ...]


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write `tensors` to `path`. Raises ValueError for what `read_tensors` would refuse."""
    plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    for name, tensor in plain.items():
        if tensor.dtype != torch.float32 or not _NAME.fullmatch(name):
            raise ValueError(f"{name} of {tensor.dtype} cannot be written: tensor files are fp32")
    save_file(plain, path, metadata={"format": "pt"})


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read every tensor in `path` to the CPU. Raises OSError, ValueError, UsageError for links."""
    read_shapes(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from None


def read_floats(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield each tensor of a file of fp32, bf16 or fp16, on the CPU, one at a time.

    Tensors are of the file's memory map, which ends with each: pages of it count as the process's.
    Raises OSError and ValueError. Links are followed.
    """
    names = read_float_shapes(path)
    try:
        for name in names:
            with safe_open(path, framework="pt") as file:
                yield name, file.get_tensor(name)
    except SafetensorError as error:
        raise ValueError(str(error)) from None


def read_float_shapes(path: Path) -> dict[str, Shape]:
    """Read the shapes of a file for `read_floats`, as `read_shapes` does."""
    return _read_header(path, _FLOATS, follow_links=True)


def read_shapes(path: Path) -> dict[str, Shape]:
    """Read the shapes from the header of `path` and check the file size; read no tensor.

    Raises OSError, ValueError, UsageError for links.
    """
    return _read_header(path, _FP32, follow_links=False)


def _read_header(path: Path, dtypes: Mapping[str, int], *, follow_links: bool) -> dict[str, Shape]:
    with open_regular(path, follow_links=follow_links) as file:
        size_bytes = file.seek(0, 2)
        file.seek(0)
        text = _header_text(file, size_bytes)
    entries = parse_json(text)
    if not isinstance(entries, dict):
        raise ValueError("the header is not an object")
    entries.pop(_METADATA, None)
    shapes = {name: _shape(name, entry, dtypes) for name, entry in entries.items()}
    _require_no_gaps(entries, size_bytes - _LENGTH.size - len(text))
    return shapes


def _header_text(file: BinaryIO, size_bytes: int) -> bytes:
    if size_bytes < _LENGTH.size:
        raise ValueError(f"its {size_bytes} bytes are too few for a header")
    head = file.read(_HEAD_BYTES)
    (length,) = _LENGTH.unpack(head[: _LENGTH.size])
    longest = min(_LONGEST_HEADER_BYTES, size_bytes - _LENGTH.size)
    if length > longest:
        what = other_content(head)
        if what is not None:
            raise ValueError(f"it is {what}")
        raise ValueError(f"its header would have {length} bytes; at most {longest} are possible")
    file.seek(_LENGTH.size)
    return file.read(length)


def _shape(name: str, entry: Any, dtypes: Mapping[str, int]) -> Shape:
    """Return the shape of one tensor after checking its entry and its size in bytes."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name[:80]!r} is not the name of a tensor")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name} has other fields than dtype, shape and data_offsets")
    number_bytes = dtypes.get(str(entry["dtype"]))
    if number_bytes is None:
        found, allowed = str(entry["dtype"])[:20], ", ".join(map(repr, dtypes))
        raise ValueError(f"{name} has dtype {found!r}, not {allowed}")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _are_counts(shape) or len(shape) > _MOST_DIMENSIONS:
        raise ValueError(f"{name} has no valid shape")
    if not _are_counts(offsets) or len(offsets) != 2:
        raise ValueError(f"{name} has no valid data_offsets")
    if offsets[1] - offsets[0] != number_bytes * math.prod(shape):
        raise ValueError(f"{name} has shape {shape} in {offsets[1] - offsets[0]} bytes")
    return tuple(shape)


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _require_no_gaps(entries: Mapping[str, Any], data_bytes: int) -> None:
    end = 0
    for first, after in sorted(entry["data_offsets"] for entry in entries.values()):
        if first != end:
            raise ValueError(f"its tensors leave a gap or overlap at byte {end} of the data")
        end = after
    if end != data_bytes:
        raise ValueError(f"its tensors have {end} bytes, its data {data_bytes}")
