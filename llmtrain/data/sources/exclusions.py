"""Paths that are skipped in directories and globs unless named: outputs, caches, packages."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from llmtrain.files import cache_directory
from llmtrain.untrusted import read_json

Role = Literal["train", "validation", "test"]

_PACKAGES = "installed packages or compiled code"
_PACKAGE_NAMES = frozenset({"node_modules", "__pycache__", "site-packages", "dist-packages"})
_STATE = "state.json"
_INFO = "dataset_info.json"
_DATASETS_CACHE = re.compile(r"cache-.*\.arrow|tmp[^.]*")
_VALIDATION = re.compile(r"(validation|valid|val|dev|eval)([._-].*)?", re.IGNORECASE)
_TEST = re.compile(r"test([._-].*)?", re.IGNORECASE)
_SPLIT_FILE = re.compile(r"(.+)-\d{5}-of-\d{5}(-[0-9a-f]+)?\.[A-Za-z]+(\.[A-Za-z0-9]+)?")


def reason_against_name(name: str) -> str | None:
    """Return why a directory of that name is not read, or None."""
    return _PACKAGES if name in _PACKAGE_NAMES else None


def reason_against_directory(path: Path) -> str | None:
    """Return why a directory that was found is not read, or None."""
    if (reason := reason_against_name(path.name)) is not None:
        return reason
    try:
        names = {each.name for each in path.iterdir()}
    except OSError:
        return None  # walking into it will raise the error
    if "pyvenv.cfg" in names:
        return "a virtual environment"
    if "run.yaml" in names and names & {"checkpoints", "metrics.jsonl"}:
        return "a run of llmtrain"
    if names >= {"index.json", "train-00000.bin"} or _is_cache(path, names):
        return "a cache of llmtrain"
    has_weights = any(name.endswith(".safetensors") for name in names)
    has_tokenizer = bool(names & {"tokenizer.model", "tokenizer.json"})
    described = names & {"config.json", "manifest.json", "tokenizer_config.json"}
    if described and (has_weights or has_tokenizer):
        return "a model, a checkpoint or a tokenizer"
    return None


def _is_cache(path: Path, names: set[str]) -> bool:
    """Return whether it is the cache, or an earlier LLMTRAIN_CACHE_DIR."""
    if "locks" in names and names & {"shards", "tokenizers", "remote"}:
        return True
    here = cache_directory()
    return here.exists() and path.samefile(here)


def reason_against_file(path: Path, listed: frozenset[str] | None) -> str | None:
    """Return why a file that was found is not read, or None.

    `listed` are the data files of its directory (see `listed_files`).
    """
    is_saved = listed is not None or (path.parent / _INFO).exists()
    if _DATASETS_CACHE.fullmatch(path.name) and is_saved:
        return "a cache file of Hugging Face datasets"
    if listed is not None and path.name not in listed:
        return "not among the data files of a saved dataset"
    return None


def listed_files(directory: Path) -> frozenset[str] | None:
    """Return the data files of a directory by `Dataset.save_to_disk`; None for any other."""
    try:
        state = read_json(directory / _STATE)
        return frozenset(str(each["filename"]) for each in state["_data_files"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def split_role(path: Path, root: Path) -> Role:
    """Return which split of a dataset below `root` a file that was found belongs to.

    Splits are directories in the output of `DatasetDict.save_to_disk`, and names such as
    `train-00000-of-00001.parquet` in a clone from the Hugging Face Hub. Any other file is
    trained on.
    """
    if path.parent != root and _is_split_directory(path.parent):
        return _role(path.parent.name)
    match = _SPLIT_FILE.fullmatch(path.name)
    if match is not None and any(path.parent.glob("train-*-of-*")):
        return _role(match[1])
    return "train"


def _is_split_directory(path: Path) -> bool:
    if not (path / _STATE).is_file():
        return False
    if (path.parent / "dataset_dict.json").is_file():
        return True
    return any((each / _STATE).is_file() for each in path.parent.glob("train*"))


def _role(name: str) -> Role:
    if _VALIDATION.fullmatch(name):
        return "validation"
    return "test" if _TEST.fullmatch(name) else "train"
