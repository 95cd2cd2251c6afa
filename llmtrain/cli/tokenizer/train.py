"""`llmtrain tokenizer train`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from llmtrain.cli.options import (
    DataOption,
    JsonOption,
    OverwriteOption,
    ProfileTextFieldOption,
    flag_settings,
)
from llmtrain.cli.output import Output

if TYPE_CHECKING:
    from llmtrain.prepare.train_tokenizer import LearnedTokenizer


def train(
    output: Output,
    vocab_size: Annotated[
        str, typer.Option("--vocab-size", help="Pieces to learn, or auto: by model and text.")
    ],
    out: Annotated[Path, typer.Option("--out", help="The directory to write.")],
    overwrite: OverwriteOption = False,
    data: DataOption = None,
    text_field: ProfileTextFieldOption = None,
    include: Annotated[
        list[str] | None,
        typer.Option("--include", help="A pattern as in .gitignore, of what is read. Repeatable."),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option("--exclude", help="A pattern of what is not read. Repeatable."),
    ] = None,
    kind: Annotated[
        Literal["bpe", "unigram"],
        typer.Option("--kind", help="Byte pairs merged in order, or the likeliest pieces."),
    ] = "bpe",
    reserve: Annotated[
        int, typer.Option("--reserve", help="Control pieces to keep for later use.")
    ] = 0,
    parameters: Annotated[
        str | None,
        typer.Option("--parameters", help="Of the model beside its embeddings; for auto."),
    ] = None,
    max_bytes: Annotated[
        str | None,
        typer.Option(
            "--max-bytes",
            help="Learn from a sample of at most this size. Default: 64MiB; unigram 16MiB.",
        ),
    ] = None,
    json: JsonOption = False,
) -> int:
    """Learn a lossless vocabulary from text."""
    from llmtrain.train.distributed.signals import stop_on_signals
    from llmtrain.units import parse_bytes, parse_count

    with stop_on_signals() as stop:
        from llmtrain.cli.progress import watching
        from llmtrain.prepare.context import PrepareContext
        from llmtrain.prepare.train_tokenizer import VocabularyOptions, learn_tokenizer
        from llmtrain.profile.load import load_profile

        flags = flag_settings(
            data_sources=data or None,
            data_text_field=text_field,
            data_include=include or None,
            data_exclude=exclude or None,
        )
        pieces = None if vocab_size == "auto" else vocab_size
        wish = VocabularyOptions(
            pieces=_amount("--vocab-size", pieces, parse_count),
            kind=kind,
            reserved=reserve,
            parameters=_amount("--parameters", parameters, parse_count),
            max_bytes=_amount("--max-bytes", max_bytes, parse_bytes),
        )
        with _written(out, overwrite=overwrite), watching(output) as observe:
            section = load_profile(flags=flags).profile.data
            learnt = learn_tokenizer(section, wish, PrepareContext(1, observe, stop.check))
            learnt.trained.tokenizer.save(out)
    if json:
        output.document(_document(out, wish.kind, wish.reserved, learnt))
    else:
        output.result(_line(out, learnt))
    return 0


def _document(out: Path, kind: str, reserved: int, learnt: LearnedTokenizer) -> dict[str, Any]:
    trained = learnt.trained
    return {
        "out": str(out),
        "kind": kind,
        "vocab_size": trained.tokenizer.vocab_size,
        "requested_vocab_size": trained.requested_vocab_size,
        "vocab_size_reason": learnt.pieces_reason,
        "reserved": reserved,
        "documents": trained.documents,
        "bytes_seen": trained.bytes_seen,
        "bytes_used": trained.bytes_used,
        "skipped": learnt.skipped,
        "sha256": trained.tokenizer.fingerprint,
    }


def _line(out: Path, learnt: LearnedTokenizer) -> str:
    from llmtrain.units import format_bytes

    trained = learnt.trained
    documents = "1 document" if trained.documents == 1 else f"{trained.documents} documents"
    read = f"{format_bytes(trained.bytes_used)} of {documents}"
    sources = ", ".join(learnt.sources)
    return f"{out}: {trained.tokenizer.vocab_size} pieces from {read} of {sources}"


def _amount(option: str, text: str | None, parse: Callable[[str], int]) -> int | None:
    """What the option says; None where it was not given. Raises UsageError."""
    from llmtrain.errors import UsageError

    try:
        return None if text is None else parse(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None


@contextmanager
def _written(directory: Path, *, overwrite: bool) -> Iterator[None]:
    """Within the block the directory is there; one that is new stays only if the block succeeds.

    Raises UsageError.
    """
    require_directory(directory, overwrite=overwrite)
    try:
        yield
    except BaseException:
        with suppress(OSError):  # what has something in it stays
            directory.rmdir()
        raise


def require_directory(directory: Path, *, overwrite: bool) -> None:
    """It is there, made now if need be, and empty unless its tokenizer may be replaced.

    Raises UsageError.
    """
    from llmtrain.errors import UsageError

    try:
        directory.mkdir(parents=True, exist_ok=True)
        there = next(directory.iterdir(), None)
        if there is not None and not overwrite:
            raise UsageError(
                f"--out {directory} is not empty: it has {there.name}",
                hint="another --out; --overwrite replaces the tokenizer that is in it",
            )
    except OSError as error:
        raise UsageError(
            f"--out {directory} cannot be written: {error.strerror}", hint="--out tokenizer"
        ) from None
