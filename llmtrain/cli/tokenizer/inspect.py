"""`llmtrain tokenizer inspect`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmtrain.cli import options
from llmtrain.cli.output import Output
from llmtrain.cli.tokenizer.text import TokenizerOption
from llmtrain.units import counted, format_bytes

if TYPE_CHECKING:
    from llmtrain.cli.output import Part
    from llmtrain.documents.tokenizer import TokenizerInspect

_KINDS = {"own": "trained by llmtrain"}


def inspect(
    output: Output,
    tokenizer: TokenizerOption,
    data: options.Data = None,
    text_field: options.TextField = "text",
    beside: Annotated[
        list[Path] | None,
        typer.Option("--beside", help="Another tokenizer, for comparison. Repeatable."),
    ] = None,
) -> None:
    """Show a tokenizer's vocabulary, and with --data how well it fits a text, beside others."""
    from llmtrain.data.sources.resolve import resolve_sources
    from llmtrain.documents.tokenizer import TokenizerInspect
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
    report = TokenizerInspect.of(inspect_tokenizer(own, samples, others))
    output.answer(report, _parts(report))


def _parts(report: TokenizerInspect) -> Iterator[Part]:
    """Yield the facts of the tokenizer, its statistics on the text, and examples of pieces."""
    from llmtrain.cli.tables import facts_table

    yield facts_table(_facts(report))
    yield ""
    rows = [(repr(each.text), "  ".join(map(repr, each.pieces))) for each in report.spellings]
    yield facts_table(rows)


def _facts(report: TokenizerInspect) -> Iterator[tuple[str, str]]:
    yield "kind", _KINDS.get(report.kind, report.kind)
    yield "vocabulary", f"{report.vocab_size:,} pieces"
    yield "separator", f"{report.separator} (id {report.separator_id}), between documents"
    yield "sha256", report.fingerprint
    yield "longest pieces", "  ".join(map(repr, report.longest_pieces))
    if not report.sample_bytes:
        yield "text", "none; --data FILE shows how well it fits"
        return
    size = f"{format_bytes(report.sample_bytes)}, {counted(report.sample_tokens, 'token')}"
    yield "text", f"{size}, {report.bytes_per_token or 0:.3f} bytes per token"
    yield "byte pieces", f"{report.byte_fallback_rate or 0:.2%} of the tokens"
    yield (
        "unused",
        f"{report.unused_text_pieces:,} pieces, {report.unused_share or 0:.1%} of those of text",
    )
    rarest = "  ".join(f"{each.piece!r} {each.times}×" for each in report.rarest_pieces)
    yield "rarest pieces", rarest
    for part, fits in (("of --data", report.sources), ("others", report.beside)):
        for fit in fits:
            rate = fit.bytes_per_token
            density = "no text" if rate is None else f"{rate:.3f} bytes per token"
            yield part, f"{density}, {counted(fit.tokens, 'token')}: {fit.name}"
