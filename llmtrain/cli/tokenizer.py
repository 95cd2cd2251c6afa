"""`llmtrain tokenizer train|encode|decode|inspect`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from llmtrain.cli.command import command, group
from llmtrain.cli.options import DataOption, JsonOption
from llmtrain.cli.voice import Voice

TokenizerOption = Annotated[
    Path, typer.Option("--tokenizer", help="A tokenizer's or a checkpoint's directory.")
]
FileArgument = Annotated[
    Path | None, typer.Argument(metavar="FILE", help="What to read; default: stdin.")
]


def register(app: typer.Typer) -> None:
    """`tokenizer` is a group of `app`."""
    tokenizer = group("Train a tokenizer, and use one.")
    app.add_typer(tokenizer, name="tokenizer")
    command(tokenizer, "train")(train)
    command(tokenizer, "encode")(encode)
    command(tokenizer, "decode")(decode)
    command(tokenizer, "inspect")(inspect)


def train(
    voice: Voice,
    vocab_size: Annotated[int, typer.Option("--vocab-size", help="Pieces to learn.")],
    out: Annotated[Path, typer.Option("--out", help="The directory to write.")],
    data: DataOption = None,
    text_field: Annotated[
        str, typer.Option("--text-field", help="The field of a .jsonl.")
    ] = "text",
    max_bytes: Annotated[
        str, typer.Option("--max-bytes", help="Learn from a sample of at most this size.")
    ] = "64MiB",
    json: JsonOption = False,
) -> int:
    """Learn a lossless byte-pair vocabulary from text."""
    from llmtrain.data.sources import resolve_sources
    from llmtrain.errors import UsageError
    from llmtrain.tokenizer import train_tokenizer
    from llmtrain.tokenizer.learner import learn_apart
    from llmtrain.units import format_bytes, parse_bytes

    try:
        sample_bytes = parse_bytes(max_bytes)
    except ValueError as error:
        raise UsageError(f"--max-bytes: {error}") from None
    corpus = resolve_sources(data or ["builtin:python"], text_field=text_field)
    _require_writable(out)
    trained = train_tokenizer(
        (document.text for document in corpus.documents()),
        vocab_size=vocab_size,
        max_bytes=sample_bytes,
        learn=partial(learn_apart, check_stop=lambda: None),
    )
    trained.tokenizer.save(out)
    pieces = trained.tokenizer.vocab_size
    if pieces < vocab_size:
        voice.warning(f"the text gives only {pieces} pieces of {vocab_size}")
    if json:
        voice.document(
            {
                "out": str(out),
                "vocab_size": pieces,
                "requested_vocab_size": vocab_size,
                "documents": trained.documents,
                "bytes_used": trained.bytes_used,
                "sha256": trained.tokenizer.fingerprint,
            }
        )
    else:
        learnt = format_bytes(trained.bytes_used)
        voice.result(f"{out}: {pieces} pieces from {learnt} of {trained.documents} documents")
    return 0


def encode(
    voice: Voice,
    tokenizer: TokenizerOption,
    file: FileArgument = None,
    json: JsonOption = False,
) -> int:
    """Text to ids, separated by spaces."""
    from llmtrain.tokenizer import Tokenizer

    ids = Tokenizer.load(tokenizer).encode(_read_text(file))
    if json:
        voice.document({"ids": ids, "tokens": len(ids)})
        return 0
    voice.result(" ".join(map(str, ids)))
    return 0


def decode(
    voice: Voice,
    tokenizer: TokenizerOption,
    file: FileArgument = None,
    json: JsonOption = False,
) -> int:
    """Ids to the exact text."""
    from llmtrain.errors import DataError
    from llmtrain.tokenizer import Tokenizer

    words = _read_text(file).split()
    wrong = next((word for word in words if not word.isascii() or not word.isdigit()), None)
    if wrong is not None:
        raise DataError(f"{wrong!r} is not a token id", hint="llmtrain tokenizer encode prints ids")
    text = Tokenizer.load(tokenizer).decode([int(word) for word in words])
    if json:
        voice.document({"text": text})
        return 0
    sys.stdout.buffer.write(text.encode("utf-8"))
    sys.stdout.buffer.flush()
    return 0


def inspect(
    voice: Voice,
    tokenizer: TokenizerOption,
    data: DataOption = None,
    text_field: Annotated[
        str, typer.Option("--text-field", help="The field of a .jsonl.")
    ] = "text",
    json: JsonOption = False,
) -> int:
    """A tokenizer's vocabulary, and with --data how well it fits a text."""
    from llmtrain.data.sources import resolve_sources
    from llmtrain.tokenizer import Tokenizer, inspect_tokenizer

    texts = (
        (d.text for d in resolve_sources(data, text_field=text_field).documents()) if data else ()
    )
    report = inspect_tokenizer(Tokenizer.load(tokenizer), texts)
    if json:
        voice.document(asdict(report))
        return 0
    for name, value in asdict(report).items():
        if value is not None:
            voice.result(f"{name:<20}{_shown(value)}")
    return 0


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return "  ".join(repr(item) for item in value)
    return str(value)


def _require_writable(directory: Path) -> None:
    from llmtrain.errors import UsageError

    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"--out {directory} cannot be written: {error.strerror}", hint="--out tokenizer"
        ) from None


def _read_text(file: Path | None) -> str:
    """All of a file or of stdin, exactly. Raises DataError with the offset of what is not UTF-8."""
    from llmtrain.errors import DataError

    name = str(file) if file is not None else "stdin"
    try:
        raw = file.read_bytes() if file is not None else sys.stdin.buffer.read()
        return raw.decode("utf-8")
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: not UTF-8 at byte {error.start}") from None
