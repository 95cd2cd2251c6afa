"""`llmtrain eval`."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from llmtrain.cli.command import command
from llmtrain.cli.options import (
    DataOption,
    DeviceOption,
    ForceCpuOption,
    JsonOption,
    RunArgument,
    TextFieldOption,
    device_section,
)
from llmtrain.cli.output import Output
from llmtrain.cli.thresholds import (
    Threshold,
    at_most,
    positive,
    require_met,
)

if TYPE_CHECKING:
    from llmtrain.documents.inference import Eval
    from llmtrain.engine.inference import Evaluation


def register(app: typer.Typer) -> None:
    """Add the command `eval` to `app`."""
    command(app, "eval", "llmtrain eval my-run --data other.txt")(evaluate)


def evaluate(
    output: Output,
    run: RunArgument,
    data: DataOption = None,
    device: DeviceOption = None,
    force_cpu: ForceCpuOption = False,
    text_field: TextFieldOption = "text",
    max_bpb: Annotated[
        float | None,
        typer.Option(
            "--max-bpb", metavar="BITS", help="Exit with 6 if bits per byte are above this."
        ),
    ] = None,
    json: JsonOption = False,
) -> int:
    """Evaluate a model: nats per token, perplexity, bits per byte, beside baselines."""
    from llmtrain.cli.progress import watching
    from llmtrain.documents.base import present
    from llmtrain.documents.inference import Eval
    from llmtrain.engine.inference import evaluate_run
    from llmtrain.train.distributed.signals import stop_on_signals

    positive("--max-bpb", max_bpb)
    section = device_section(device, force_cpu)
    with stop_on_signals() as stop, watching(output) as observe:
        evaluation = evaluate_run(run, data or [], section, observe, stop.check, text_field)
    thresholds = _thresholds(evaluation, max_bpb)
    document = Eval.of(evaluation, **present(thresholds=thresholds))
    if json:
        output.document(document)
    else:
        _show(output, document)
    require_met(thresholds, hint=f"llmtrain runs show {shlex.quote(run)} shows the run")
    return 0


def _thresholds(evaluation: Evaluation, max_bpb: float | None) -> list[Threshold]:
    if max_bpb is None:
        return []
    return [
        at_most(
            "--max-bpb",
            max_bpb,
            evaluation.bits_per_byte,
            is_named=f"bits per byte of {evaluation.checkpoint}",
            unknown=f"bits per byte of {evaluation.checkpoint} are not a finite number",
        )
    ]


def _show(output: Output, evaluation: Eval) -> None:
    output.result(f"checkpoint       {evaluation.checkpoint}")
    output.result(f"text             {evaluation.tokens} tokens, {evaluation.bytes} bytes")
    output.result(f"loss             {evaluation.loss_nats_per_token:.4f} nats/token")
    output.result(f"perplexity       {evaluation.perplexity:.4g}")
    output.result(f"bits per byte    {evaluation.bits_per_byte:.4f}")
    for name, value in evaluation.baselines:
        if value is not None:
            output.result(f"  {name.removesuffix('_bpb'):<15}{value:.4f}")
