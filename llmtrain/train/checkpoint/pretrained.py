"""A model directory of another program: config.json and safetensors, in one file or sharded.

Nothing in it is trusted: config.json and index are small plain JSON, the header of each tensor file
is validated before a tensor is read, and only safetensors are read, never pickled weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from llmtrain.errors import LlmtrainError, UsageError
from llmtrain.files import sha256_file
from llmtrain.model.huggingface import EMBEDDING, HEAD, weight_shapes
from llmtrain.model.pretrained_config import shape_of_pretrained
from llmtrain.profile.shape import ModelShape
from llmtrain.train.checkpoint.tensors import Shape, read_float_shapes, read_floats
from llmtrain.untrusted import parse_json, problem_of, read_bytes

CONFIG = "config.json"
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.safetensors", re.ASCII)
_JSON_BYTES = 16 << 20
# Rotary frequencies, which old versions of transformers saved; they follow from config.json.
_DERIVED = re.compile(r"(model\.layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")


@dataclass(frozen=True, slots=True)
class PretrainedDirectory:
    """A directory whose config and tensor headers were read and fit each other."""

    path: Path
    shape: ModelShape
    files: tuple[Path, ...]  # with tensors

    def sha256(self) -> dict[str, str]:
        """Return the hash of config.json and of every file with tensors, by name."""
        return {file.name: sha256_file(file) for file in (self.path / CONFIG, *self.files)}

    def read_weights(self) -> dict[str, Tensor]:
        """Return the weights in fp32 by their Hugging Face names. Raises LlmtrainError."""
        return dict(self.tensors())

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the name and the weights of each tensor, in fp32. Raises LlmtrainError.

        A head that is the embedding is left out.
        """
        return ((name, tensor.float()) for name, tensor in self.stored_tensors())

    def stored_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the name and the weights of each tensor, in the type that the file has.

        Each is of the file's memory map. Raises LlmtrainError as `tensors`.
        """
        wanted = dict(weight_shapes(self.shape))
        has_both = self.shape.tie_embeddings and self._has_head()
        both: dict[str, Tensor] = {}  # a head beside an embedding that it has to equal
        for file in self.files:
            with _damage_named(file):
                for name, tensor in read_floats(file):
                    if has_both and name in (EMBEDDING, HEAD):
                        both[name] = tensor
                    if name in wanted:
                        yield name, tensor
        if HEAD in both and not both[HEAD].equal(both[EMBEDDING]):
            raise UsageError(
                f"{self.path / CONFIG}: tie_word_embeddings is true, and {HEAD} differs from "
                f"{EMBEDDING}",
                hint="set it to false in a copy of the directory if the head is its own",
            )

    def _has_head(self) -> bool:
        for file in self.files:
            with _damage_named(file):
                if HEAD in read_float_shapes(file):
                    return True
        return False


def is_pretrained_directory(path: Path) -> bool:
    """Return whether the directory has a config.json, as every saved model does."""
    return (path / CONFIG).is_file()


def shape_in(path: Path) -> ModelShape:
    """Return the shape in the directory's config.json. Raises UsageError and LlmtrainError."""
    with _damage_named(path / CONFIG) as file:
        config = parse_json(read_bytes(file, _JSON_BYTES, follow_links=True))
    return shape_of_pretrained(config, str(path / CONFIG))


def open_pretrained(path: Path) -> PretrainedDirectory:
    """Read config.json and the headers of all tensors; no tensor is read.

    Raises UsageError for a model that is unsupported, and LlmtrainError for damaged files.
    """
    shape = shape_in(path)
    files = _tensor_files(path)
    found: dict[str, Shape] = {}
    for file, names in files.items():
        with _damage_named(file):
            shapes = read_float_shapes(file)
            if names is not None and shapes.keys() != names:
                different = min(shapes.keys() ^ names)
                raise ValueError(f"{different} is in one of the file and {_INDEX}, not in both")
            found |= shapes
    _require_fit(path, shape, found)
    return PretrainedDirectory(path, shape, tuple(files))


def _tensor_files(path: Path) -> dict[Path, set[str] | None]:
    """Return the files with tensors; for those of an index the tensors that it says are there."""
    if (path / _SINGLE).is_file():
        return {path / _SINGLE: None}
    if not (path / _INDEX).is_file():
        pickled = sorted(file.name for file in path.glob("*.bin"))
        raise UsageError(
            f"{path} has neither {_SINGLE} nor {_INDEX}"
            + (f"; {pickled[0]} may hold code and is not read" if pickled else ""),
            hint="save it with transformers: model.save_pretrained(DIRECTORY)",
        )
    with _damage_named(path / _INDEX) as file:
        index = parse_json(read_bytes(file, _JSON_BYTES, follow_links=True))
        places = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(places, dict) or not places:
            raise ValueError("it has no weight_map")
        by_file: dict[Path, set[str] | None] = {}
        for tensor, name in places.items():
            if not isinstance(name, str) or not _SHARD_NAME.fullmatch(name):
                raise ValueError(f"{str(name)[:80]!r} is not the name of a shard")
            names = by_file.setdefault(path / name, set())
            assert names is not None
            names.add(tensor)
    return dict(sorted(by_file.items()))


def _require_fit(path: Path, shape: ModelShape, found: Mapping[str, Shape]) -> None:
    """Raise LlmtrainError unless there are just the tensors of the shape, with its dimensions."""
    wanted: dict[str, Shape] = {}
    for name, dims in weight_shapes(shape):  # ends at the first that is missing, however many
        wanted[name] = dims
        if name not in found:
            raise LlmtrainError(f"{path}: {name} is missing, which {CONFIG} describes")
        if found[name] != dims:
            raise LlmtrainError(
                f"{path}: {name} has shape {list(found[name])}, {CONFIG} describes {list(dims)}"
            )
    optional = {HEAD: wanted[EMBEDDING]}
    for name, dims in found.items():
        if name in wanted or _DERIVED.fullmatch(name) or optional.get(name) == dims:
            continue
        raise UsageError(
            f"{path}: the tensor {name} has no place in a model of its {CONFIG}",
            hint="biases, adapters and other parts beside Qwen3 and Llama forms are not supported",
        )


@contextmanager
def _damage_named(file: Path) -> Iterator[Path]:
    """Raise OSError and ValueError of the block as LlmtrainError with the file's name."""
    try:
        yield file
    except (OSError, ValueError) as error:
        raise LlmtrainError(f"{file} cannot be read: {problem_of(error)}") from None
