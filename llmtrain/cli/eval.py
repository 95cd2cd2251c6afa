"""`llmtrain eval`."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from llmtrain.cli import options
from llmtrain.cli.output import Output
from llmtrain.cli.thresholds import at_most, positive, require_met
from llmtrain.units import counted, format_bytes

if TYPE_CHECKING:
    from llmtrain.cli.output import Part
    from llmtrain.documents.runs import Eval


def evaluate(
    output: Output,
    run: options.Run,
    data: options.Data = None,
    device: options.Device = None,
    force_cpu: options.ForceCpu = False,
    text_field: options.TextField = "text",
    questions: Annotated[
        int,
        options.whole_number("--questions", "Of conversations: short answers to compare.", 0),
    ] = 100,
    max_bpb: Annotated[
        float | None,
        typer.Option(
            "--max-bpb", metavar="BITS", help="Exit with 6 if bits per byte are above this."
        ),
    ] = None,
) -> None:
    """Evaluate a model: nats per token, perplexity, bits per byte, beside baselines."""
    from llmtrain.cli.progress import watching
    from llmtrain.documents.base import present
    from llmtrain.documents.runs import Eval
    from llmtrain.engine.inference import evaluate_run
    from llmtrain.train.signals import stop_on_signals

    positive("--max-bpb", max_bpb)
    section = options.device_section(device, force_cpu)
    with stop_on_signals() as stop, watching(output) as observe:
        evaluation = evaluate_run(
            run, data or [], section, observe, stop.check, text_field, questions
        )
    name = f"bits per byte of {evaluation.checkpoint}"
    unknown = f"{name} are not a finite number"
    thresholds = at_most(
        "--max-bpb", max_bpb, evaluation.bits_per_byte, is_named=name, unknown=unknown
    )
    document = Eval.of(evaluation, **present(thresholds=thresholds))
    output.answer(document, _parts(document))
    require_met(thresholds, hint=f"llmtrain runs show {shlex.quote(run)} shows the run")


_BASELINES = {
    "uniform_bpb": "every token as likely as any other",
    "unigram_bpb": "tokens by how often the training text has them",
    "gzip_bpb": "the text compressed by gzip",
    "bzip2_bpb": "by bzip2",
    "xz_bpb": "by xz",
}


def _parts(evaluation: Eval) -> Iterator[Part]:
    from llmtrain.cli.tables import facts_table

    baselines = {n: float(v) for n, v in evaluation.baselines if v is not None}
    text = f"{counted(evaluation.tokens, 'token')}, {format_bytes(evaluation.bytes)}"
    rows = [
        ("checkpoint", evaluation.checkpoint),
        ("text", text),
        ("loss", f"{evaluation.loss_nats_per_token:.4f} nats/token"),
        ("perplexity", f"{evaluation.perplexity:.4g}"),
        ("bits per byte", f"{evaluation.bits_per_byte:.4f}"),
        *(
            (f"  {name.removesuffix('_bpb')}", f"{v:.4f}  {_BASELINES[name]}")
            for name, v in baselines.items()
        ),
        *_answer_rows(evaluation),
        ("verdict", verdict_of(evaluation.bits_per_byte, baselines)),
    ]
    yield facts_table(rows)


def _answer_rows(evaluation: Eval) -> Iterator[tuple[str, str]]:
    answers = evaluation.answers
    if answers is not None:
        interval = f"{answers.share_low:.1%} to {answers.share_high:.1%}"
        yield (
            "exact answers",
            f"{answers.exact} of {answers.questions}: {answers.share:.1%} ({interval})",
        )


def verdict_of(bits_per_byte: float | None, baselines: Mapping[str, float]) -> str:
    """Return in words where the model is among what needs no model; less is better."""
    if bits_per_byte is None or not math.isfinite(bits_per_byte):
        return "the loss is not a finite number: the model is of no use"
    names = {name: name.removesuffix("_bpb") for name in baselines}
    better = [names[n] for n, value in baselines.items() if bits_per_byte < value]
    worse = [names[n] for n, value in baselines.items() if bits_per_byte >= value]
    if not worse:
        return f"better than all of these: {', '.join(better)}"
    if not better:
        return f"no better than any of these: {', '.join(worse)}; train it longer"
    return f"better than {', '.join(better)}; not than {', '.join(worse)}"
