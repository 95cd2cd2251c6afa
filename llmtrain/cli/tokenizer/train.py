"""`llmtrain tokenizer train`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from llmtrain.cli import options
from llmtrain.cli.output import Output

if TYPE_CHECKING:
    from llmtrain.prepare.train_tokenizer import LearnedTokenizer, VocabularyOptions


def train(
    output: Output,
    vocab_size: Annotated[
        str,
        typer.Option("--vocab-size", help="Pieces to learn; auto: chosen for the model and text."),
    ],
    out: Annotated[Path, typer.Option("--out", help="The directory to write.")],
    overwrite: options.Overwrite = False,
    data: options.Data = None,
    text_field: options.ProfileTextField = None,
    include: Annotated[
        list[str] | None,
        typer.Option(
            "--include", help="Read only files that match this .gitignore pattern. Repeatable."
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option("--exclude", help="Do not read files that match this pattern. Repeatable."),
    ] = None,
    kind: Annotated[
        Literal["bpe", "unigram"],
        typer.Option("--kind", help="Byte-pair encoding, or a unigram model."),
    ] = "bpe",
    reserve: Annotated[
        int, options.whole_number("--reserve", "Control pieces to reserve for later use.")
    ] = 0,
    parameters: Annotated[
        str | None,
        typer.Option("--parameters", help="Parameters of the model without embeddings; for auto."),
    ] = None,
    max_bytes: Annotated[
        str | None,
        typer.Option(
            "--max-bytes",
            help="Train on a sample of at most this size. Default: 64MiB; unigram 16MiB.",
        ),
    ] = None,
) -> None:
    """Train a lossless tokenizer on text."""
    from llmtrain.train.signals import stop_on_signals
    from llmtrain.units import parse_bytes, parse_count

    with stop_on_signals() as stop:
        from llmtrain.cli.progress import watching
        from llmtrain.prepare.context import PrepareContext
        from llmtrain.prepare.train_tokenizer import VocabularyOptions, learn_tokenizer
        from llmtrain.profile.load import load_profile

        flags = options.flag_settings(
            data_sources=data,
            data_text_field=text_field,
            data_include=include,
            data_exclude=exclude,
        )
        pieces = None if vocab_size == "auto" else vocab_size
        wanted = VocabularyOptions(
            pieces=_amount("--vocab-size", pieces, parse_count),
            kind=kind,
            reserved=reserve,
            parameters=_amount("--parameters", parameters, parse_count),
            max_bytes=_amount("--max-bytes", max_bytes, parse_bytes),
        )
        with written(out, overwrite=overwrite), watching(output) as observe:
            section = load_profile(flags=flags).profile.data
            learned = learn_tokenizer(section, wanted, PrepareContext(1, observe, stop.check))
            learned.trained.tokenizer.save(out)
    _show(output, wanted, learned, out)


def _show(output: Output, wanted: VocabularyOptions, learned: LearnedTokenizer, out: Path) -> None:
    """Show what was learned of which text."""
    from llmtrain.documents.tokenizer import TokenizerTrain
    from llmtrain.units import counted, format_bytes

    trained = learned.trained
    document = TokenizerTrain.of(
        wanted,
        learned,
        trained,
        trained.tokenizer,
        out=out,
        vocab_size_reason=learned.pieces_reason,
        sha256=trained.tokenizer.fingerprint,
    )
    read = f"{format_bytes(trained.bytes_used)} of {counted(trained.documents, 'document')}"
    line = f"{out}: {document.vocab_size} pieces from {read} of {', '.join(learned.sources)}"
    output.answer(document, [line])


def _amount(option: str, text: str | None, parse: Callable[[str], int]) -> int | None:
    """Return the value of an option; None if it was not given. Raises UsageError."""
    from llmtrain.errors import UsageError

    try:
        amount = None if text is None else parse(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None
    if amount == 0:
        raise UsageError(f"{option} {text}: has to be above 0")
    return amount


@contextmanager
def written(directory: Path, *, overwrite: bool) -> Iterator[None]:
    """Create the directory for the block; remove a new one if the block fails.

    Raises UsageError where it is no place for a tokenizer.
    """
    from llmtrain.errors import UsageError
    from llmtrain.files import created

    with ExitStack() as stack:
        try:
            stack.enter_context(created(directory))
            _require_place(directory, overwrite=overwrite)
        except OSError as error:
            raise UsageError(
                f"--out {directory} cannot be written: {error.strerror}",
                hint="--out DIRECTORY, where you may write",
            ) from None
        yield


def _require_place(directory: Path, *, overwrite: bool) -> None:
    """Raise UsageError if the directory is a model's, or is not empty.

    `overwrite` allows the latter.
    """
    from llmtrain.errors import UsageError
    from llmtrain.train.checkpoint.format import weights_files

    for place in (directory, *directory.absolute().parents):
        if weights_files(place):
            raise UsageError(
                f"--out {directory} is in a model's directory: {place} has its own tokenizer",
                hint="another --out; nothing is written into a checkpoint",
            )
    there = next(directory.iterdir(), None)
    if there is not None and not overwrite:
        raise UsageError(
            f"--out {directory} is not empty: it contains {there.name}",
            hint="another --out; --overwrite replaces the tokenizer that is in it",
        )
