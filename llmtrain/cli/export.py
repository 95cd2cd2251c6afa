"""`llmtrain export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmtrain.cli import options
from llmtrain.cli.output import Output
from llmtrain.export.encoding import Encoding, Format
from llmtrain.export.provenance import LICENSE_PLACEHOLDER
from llmtrain.units import counted, format_bytes

if TYPE_CHECKING:
    from llmtrain.documents.export import Export


def export(
    output: Output,
    run: options.Run,
    format: Annotated[  # noqa: A002 - the option's name
        Format,
        typer.Option("--format", help="gguf: llama.cpp, Ollama, LM Studio; hf: transformers."),
    ],
    quant: Annotated[
        Encoding,
        typer.Option(
            "--quant", help="How matrices are stored; hf has f32, f16 and bf16. f32 loses nothing."
        ),
    ] = "f32",
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The directory; default: exports/RUN-FORMAT."),
    ] = None,
    ollama: Annotated[
        bool, typer.Option("--ollama", help="Write a Modelfile for ollama create, too.")
    ] = False,
    verify: Annotated[
        bool | None,
        typer.Option(
            "--verify/--no-verify",
            help="Let llama.cpp or transformers read the model, and compare ids and "
            "probabilities; default: where it is installed.",
        ),
    ] = None,
    data: options.Data = None,
    license_: Annotated[
        str,
        typer.Option("--license", metavar="ID", help="The model's licence, as apache-2.0."),
    ] = LICENSE_PLACEHOLDER,
    push: Annotated[
        str | None,
        typer.Option(
            "--push",
            metavar="OWNER/NAME",
            help="Upload the files to the Hugging Face Hub; a new repository is private.",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what was exported there before.")
    ] = False,
) -> int:
    """Write a trained model for other programs, and prove that they compute the same.

    The file or directory gets its name once it is complete and, where it is verified, the same.
    --data is text to compare on; default: the run's validation text.
    """
    from llmtrain.cli.progress import watching
    from llmtrain.documents.export import Export
    from llmtrain.engine.export_request import ExportRequest
    from llmtrain.engine.export_run import export_run
    from llmtrain.train.signals import stop_on_signals

    request = ExportRequest(
        run=run,
        format=format,
        encoding=quant,
        out=out,
        data=data or [],
        ollama=ollama,
        verify=verify,
        license=license_,
        overwrite=overwrite,
        push=push,
    )
    with stop_on_signals() as stop, watching(output) as observe:
        exported = export_run(request, observe, stop.check)
    document = Export.of_exported(exported)
    if output.json:
        output.document(document)
    else:
        _show(output, document)
    return 0


def _show(output: Output, document: Export) -> None:
    from llmtrain.cli.tables import facts_table

    rows = [("checkpoint", document.checkpoint)]
    rows += [
        ("file", f"{Path(document.directory, each.name)}  {format_bytes(each.bytes)}")
        for each in document.files
    ]
    if (cost := document.cost) is not None:
        before, after = cost.bits_per_byte_before, cost.bits_per_byte_after
        change = "" if not before or after is None else f" ({after / before - 1:+.2%})"
        measured = f"on {format_bytes(cost.text_bytes)} of {cost.text}"
        sizes = f"{format_bytes(cost.bytes_before)} → {format_bytes(cost.bytes_after)}"
        rows.append(("size", sizes))
        rows.append(("bits per byte", f"{before:.4f} → {after:.4f}{change} {measured}"))
    if (seen := document.verification) is not None:
        texts = f"ids equal on {counted(seen.texts, 'text')} ({counted(seen.tokens, 'token')})"
        largest, mean = seen.largest_difference_nats, seen.mean_difference_nats
        differ = f"differ by at most {largest:.2g} nats, {mean:.2g} on average"
        rows.append(("verified", f"by {seen.program} ({seen.program_version}): {texts}"))
        rows.append(("", f"{seen.log_probabilities:,} log-probabilities {differ}"))
        rows += [("known", text) for text in seen.known_differences]
    if document.pushed is not None:
        rows.append(("pushed", document.pushed))
    output.show(facts_table(rows))
