"""Text as lines of JSON, one document a file, with a list of what is in it.

    python -m tests.benchmarks.corpus code.jsonl.gz --library --package torch --package sympy
    python -m tests.benchmarks.corpus prose.jsonl.gz --directory ../shared/data

`NAME.files.txt` beside it has each document's sha256, bytes and name.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import importlib.util
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from llmtrain.data.sources.discover import files_below, library_files


def main(arguments: Sequence[str]) -> int:
    """The corpus and its list are written, the same bytes for the same text."""
    values = _parser().parse_args(arguments)
    listed: list[str] = []
    with (
        values.corpus.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=6, mtime=0) as packed,
    ):
        for name, path in _files(values):
            try:
                text = path.read_bytes().decode("utf-8")
            except UnicodeDecodeError:
                continue
            if not text.strip():
                continue
            encoded = text.encode()
            listed.append(f"{hashlib.sha256(encoded).hexdigest()} {len(encoded)} {name}\n")
            packed.write(json.dumps({"text": text}).encode() + b"\n")
    text = "".join(listed)
    values.corpus.with_suffix("").with_suffix(".files.txt").write_text(text, encoding="utf-8")
    total = sum(int(line.split(" ")[1]) for line in listed)
    digest = hashlib.sha256(text.encode()).hexdigest()
    sys.stdout.write(f"{len(listed)} documents, {total} bytes, sha256 of the list {digest}\n")
    return 0


def _files(values: argparse.Namespace) -> Iterator[tuple[str, Path]]:
    if values.library:
        yield from ((file.origin, file.path) for file in library_files())
    for package in values.package:
        root = package_root(package)
        for path in files_below(root):
            if path.suffix == ".py":
                yield f"{package}/{path.relative_to(root).as_posix()}", path
    for directory in values.directory:
        for path in files_below(directory):
            if path.suffix in {".txt", ".md"} and path.name != "README.md":
                yield path.relative_to(directory).as_posix(), path


def package_root(package: str) -> Path:
    """Return the directory of an installed package. Raises SystemExit."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise SystemExit(f"no package {package} is installed")
    return Path(next(iter(found.submodule_search_locations)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.corpus",
        description=(__doc__ or "").partition("\n")[0],
    )
    add = parser.add_argument
    add("corpus", type=Path, help="the .jsonl.gz to write")
    add("--library", action="store_true", help="the standard library of this Python")
    add("--package", action="append", default=[], help="an installed package's sources")
    add("--directory", action="append", type=Path, default=[], help="its .txt and .md files")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
