"""Names of a checkpoint's files, also where its tensors are in several parts, one by each rank.

The weights are as transformers saves a large model: `model-00001-of-00002.safetensors`, and an
index that says which file has which tensor. The optimizer's state is in files of the same form. A
tensor is whole in one file, so that any number of ranks can read them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Literal

STATE, MANIFEST = "state.json", "manifest.json"
MODEL, OPTIMIZER = "model.safetensors", "optimizer.safetensors"
INDEX = "model.safetensors.index.json"
_PART = re.compile(r"(model|optimizer)-(\d{5})-of-(\d{5})\.safetensors", re.ASCII)
Kind = Literal["model", "optimizer"]
_WHOLE: dict[Kind, str] = {"model": MODEL, "optimizer": OPTIMIZER}


def part_name(kind: Kind, number: int, parts: int) -> str:
    """Return the name of a part, counted from 1."""
    return f"{kind}-{number:05d}-of-{parts:05d}.safetensors"


def is_optimizer_file(name: str) -> bool:
    """Return whether the file holds optimizer state."""
    return name == OPTIMIZER or _kind_of(name) == "optimizer"


def tensor_files(kind: Kind, names: Collection[str]) -> list[str]:
    """Return which of the names are the files with tensors of a kind, in order.

    There are none if a part is missing, or if parts are of different numbers.
    """
    if _WHOLE[kind] in names:
        return [_WHOLE[kind]]
    parts = sorted(name for name in names if _kind_of(name) == kind)
    return parts if parts == [part_name(kind, i + 1, len(parts)) for i in range(len(parts))] else []


def files_in(directory: Path, kind: Kind) -> list[Path]:
    """Return the files of a directory with tensors of a kind; parts may be missing."""
    names = _names_in(directory)
    found = [name for name in names if name == _WHOLE[kind] or _kind_of(name) == kind]
    return [directory / name for name in sorted(found)]


def _kind_of(name: str) -> str | None:
    match = _PART.fullmatch(name)
    return match[1] if match else None


def _names_in(directory: Path) -> Iterable[str]:
    try:
        return [path.name for path in directory.iterdir()]
    except OSError:
        return []
