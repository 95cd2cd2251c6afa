"""`llmtrain tokenizer train|import|inspect`, and the group with `encode` and `decode`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from llmtrain.cli.command import command, group
from llmtrain.cli.options import DataOption, JsonOption
from llmtrain.cli.tokenizer_text import TokenizerOption, decode, encode
from llmtrain.cli.voice import Voice

TextFieldOption = Annotated[str, typer.Option("--text-field", help="The field of a .jsonl.")]


def register(app: typer.Typer) -> None:
    """`tokenizer` is a group of `app`."""
    tokenizer = group("Train a tokenizer, and use one.")
    app.add_typer(tokenizer, name="tokenizer")
    command(tokenizer, "train")(train)
    command(tokenizer, "import")(import_)
    command(tokenizer, "encode")(encode)
    command(tokenizer, "decode")(decode)
    command(tokenizer, "inspect")(inspect)


def train(
    voice: Voice,
    vocab_size: Annotated[
        str, typer.Option("--vocab-size", help="Pieces to learn, or auto: by model and text.")
    ],
    out: Annotated[Path, typer.Option("--out", help="The directory to write.")],
    data: DataOption = None,
    text_field: TextFieldOption = "text",
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
    from llmtrain.data.sources import resolve_sources
    from llmtrain.tokenizer import train_tokenizer
    from llmtrain.tokenizer.learner import learn_apart
    from llmtrain.units import format_bytes, parse_bytes, parse_count

    wished = _Vocabulary(voice, vocab_size, _amount("--parameters", parameters, parse_count))
    sample_bytes = _amount("--max-bytes", max_bytes, parse_bytes)
    corpus = resolve_sources(data or ["builtin:python"], text_field=text_field)
    _require_writable(out)
    trained = train_tokenizer(
        (document.text for document in corpus.documents()),
        vocab_size=wished.size,
        kind=kind,
        reserved=reserve,
        max_bytes=sample_bytes,
        learn=partial(learn_apart, check_stop=lambda: None),
    )
    trained.tokenizer.save(out)
    pieces = trained.tokenizer.vocab_size
    if pieces < trained.requested_vocab_size:
        voice.warning(f"the text gives only {pieces} pieces of {trained.requested_vocab_size}")
    if json:
        voice.document(
            {
                "out": str(out),
                "kind": kind,
                "vocab_size": pieces,
                "requested_vocab_size": trained.requested_vocab_size,
                "vocab_size_reason": wished.reason,
                "reserved": reserve,
                "documents": trained.documents,
                "bytes_seen": trained.bytes_seen,
                "bytes_used": trained.bytes_used,
                "sha256": trained.tokenizer.fingerprint,
            }
        )
    else:
        learnt = format_bytes(trained.bytes_used)
        voice.result(f"{out}: {pieces} pieces from {learnt} of {trained.documents} documents")
    return 0


def import_(
    voice: Voice,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A sentencepiece .model, a tokenizer.json, a .tiktoken, or a directory with one.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="The directory to write.")],
    pattern: Annotated[
        str | None,
        typer.Option(
            "--pattern",
            help="How a .tiktoken splits text: gpt2, cl100k_base, o200k_base, or a regex.",
        ),
    ] = None,
    separator: Annotated[
        str | None,
        typer.Option("--separator", help="The token between documents; default: its own end."),
    ] = None,
    allow_lossy: Annotated[
        bool, typer.Option("--allow-lossy", help="Take one that changes some text.")
    ] = False,
    json: JsonOption = False,
) -> int:
    """Make a tokenizer of another's file, with the ids that it has there."""
    from llmtrain.tokenizer import ImportOptions, import_tokenizer

    imported = import_tokenizer(file, ImportOptions(pattern, separator, allow_lossy))
    _require_writable(out)
    tokenizer = imported.tokenizer
    tokenizer.save(out)
    for warning in imported.warnings:
        voice.warning(warning)
    if json:
        voice.document(
            {
                "out": str(out),
                "source": str(imported.path),
                "kind": tokenizer.kind.name,
                "vocab_size": tokenizer.vocab_size,
                "separator": imported.separator,
                "separator_id": tokenizer.separator_id,
                "added_separator": imported.added_separator,
                "warnings": list(imported.warnings),
                "sha256": tokenizer.fingerprint,
            }
        )
    else:
        how = ", added" if imported.added_separator else ""
        voice.result(
            f"{out}: {tokenizer.vocab_size} pieces of {imported.path}; separator "
            f"{imported.separator} ({tokenizer.separator_id}{how})"
        )
    return 0


def inspect(
    voice: Voice,
    tokenizer: TokenizerOption,
    data: DataOption = None,
    text_field: TextFieldOption = "text",
    beside: Annotated[
        list[Path] | None,
        typer.Option("--beside", help="Another tokenizer, on the same text. Repeatable."),
    ] = None,
    json: JsonOption = False,
) -> int:
    """A tokenizer's vocabulary, and with --data how well it fits a text, beside others."""
    from llmtrain.data.sources import resolve_sources
    from llmtrain.tokenizer import inspect_tokenizer, open_tokenizer
    from llmtrain.tokenizer.well_known import well_known_tokenizers

    own = open_tokenizer(tokenizer)
    others = {str(path): open_tokenizer(path) for path in beside or ()}
    if data:
        others |= well_known_tokenizers()
    corpora = {spec: resolve_sources([spec], text_field=text_field) for spec in data or ()}
    samples = {
        spec: (document.text for document in corpus.documents()) for spec, corpus in corpora.items()
    }
    report = asdict(inspect_tokenizer(own, samples, others))
    if json:
        voice.document(report)
    else:
        _show(voice, report)
    return 0


def _show(voice: Voice, report: dict[str, Any]) -> None:
    """A line a figure, and one a text or tokenizer."""
    for name, value in report.items():
        if value is not None and name not in ("sources", "beside", "spellings", "rarest_pieces"):
            voice.result(f"{name:<20}{_shown(value)}")
    rarest = "  ".join(f"{each['piece']!r} {each['times']}×" for each in report["rarest_pieces"])
    if rarest:
        voice.result(f"{'rarest_pieces':<20}{rarest}")
    for spelling in report["spellings"]:
        voice.result(f"{'':<20}{spelling['text']!r} = {_shown(spelling['pieces'])}")
    for part in ("sources", "beside"):
        for fit in report[part]:
            rate = fit["bytes_per_token"]
            told = "no text" if rate is None else f"{rate:.3f} bytes per token"
            voice.result(f"{part:<20}{told:<24}{fit['tokens']:>12} tokens  {fit['name']}")


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return "  ".join(repr(item) for item in value)
    return str(value)


class _Vocabulary:
    """Said by the user, or by model and text once there is a text; then it is told."""

    def __init__(self, voice: Voice, wished: str, parameters: int | None) -> None:
        from llmtrain.units import parse_count

        self.reason: str | None = None
        self._voice = voice
        self._parameters = parameters
        count = None if wished == "auto" else _amount("--vocab-size", wished, parse_count)
        self.size: int | Callable[[int], int] = self._chosen if count is None else count

    def _chosen(self, text_bytes: int) -> int:
        from llmtrain.tokenizer.vocabulary import vocabulary_size

        choice = vocabulary_size(text_bytes, self._parameters)
        self.reason = choice.reason
        self._voice.note(f"vocabulary of {choice.value} pieces: {choice.reason}")
        return choice.value


def _amount(option: str, text: str | None, parse: Callable[[str], int]) -> int | None:
    """What the option says; None where it was not given. Raises UsageError."""
    from llmtrain.errors import UsageError

    try:
        return None if text is None else parse(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None


def _require_writable(directory: Path) -> None:
    from llmtrain.errors import UsageError

    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"--out {directory} cannot be written: {error.strerror}", hint="--out tokenizer"
        ) from None
