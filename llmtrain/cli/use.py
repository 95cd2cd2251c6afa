"""`llmtrain eval` and `llmtrain generate`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmtrain.cli.command import command
from llmtrain.cli.options import (
    DataOption,
    DeviceOption,
    ForceCpuOption,
    JsonOption,
    TextFieldOption,
    device_section,
)
from llmtrain.cli.thresholds import (
    Threshold,
    at_most,
    positive,
    require_met,
    thresholds_document,
)
from llmtrain.cli.voice import Voice

if TYPE_CHECKING:
    from llmtrain.engine.inference import Evaluation

RunArgument = Annotated[
    str,
    typer.Argument(metavar="RUN", help="A run directory, a checkpoint, or a name under runs/."),
]


def register(app: typer.Typer) -> None:
    """`eval` and `generate` are commands of `app`."""
    command(app, "eval")(evaluate)
    command(app, "generate")(generate)


def evaluate(
    voice: Voice,
    run: RunArgument,
    data: DataOption = None,
    device: DeviceOption = None,
    force_cpu: ForceCpuOption = False,
    text_field: TextFieldOption = "text",
    max_bpb: Annotated[
        float | None,
        typer.Option(
            "--max-bpb", metavar="BITS", help="Exit with 6 where bits per byte are above this."
        ),
    ] = None,
    json: JsonOption = False,
) -> int:
    """Measure a model: nats per token, perplexity, bits per byte, next to baselines."""
    from llmtrain.cli.progress import watching
    from llmtrain.engine.inference import evaluate_run
    from llmtrain.train.signals import stop_on_signals

    positive("--max-bpb", max_bpb)
    section = device_section(device, force_cpu)
    with stop_on_signals() as stop, watching(voice) as observe:
        evaluation = evaluate_run(run, data or [], section, observe, stop.check, text_field)
    thresholds = _thresholds(evaluation, max_bpb)
    if json:
        voice.document({**evaluation_document(evaluation), **thresholds_document(thresholds)})
    else:
        _show(voice, evaluation)
    require_met(thresholds, hint=f"llmtrain runs show {run} tells how the run went")
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
            unknown=f"bits per byte of {evaluation.checkpoint} are no number",
        )
    ]


def evaluation_document(evaluation: Evaluation) -> dict[str, Any]:
    """The `eval` document."""
    return asdict(evaluation) | {"checkpoint": str(evaluation.checkpoint)}


def _show(voice: Voice, evaluation: Evaluation) -> None:
    voice.result(f"checkpoint       {evaluation.checkpoint}")
    voice.result(f"text             {evaluation.tokens} tokens, {evaluation.bytes} bytes")
    voice.result(f"loss             {evaluation.loss_nats_per_token:.4f} nats/token")
    voice.result(f"perplexity       {evaluation.perplexity:.4g}")
    voice.result(f"bits per byte    {evaluation.bits_per_byte:.4f}")
    for name, value in asdict(evaluation.baselines).items():
        if value is not None:
            voice.result(f"  {name.removesuffix('_bpb'):<15}{value:.4f}")


def generate(
    voice: Voice,
    run: RunArgument,
    prompt: Annotated[str, typer.Option("--prompt", help="The text to continue.")] = "",
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, help="At most so many new tokens.")
    ] = 200,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0.0, help="0 is greedy.")
    ] = 0.8,
    top_k: Annotated[
        int | None, typer.Option("--top-k", min=1, help="Only the k likeliest tokens.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option("--top-p", min=0.0, max=1.0, help="Only this much probability.")
    ] = None,
    repetition_penalty: Annotated[
        float, typer.Option("--repetition-penalty", min=1.0, help="Above 1 repeats less.")
    ] = 1.0,
    seed: Annotated[int, typer.Option("--seed", help="Equal seeds give equal texts.")] = 0,
    device: DeviceOption = None,
    force_cpu: ForceCpuOption = False,
    json: JsonOption = False,
) -> int:
    """Stream text from a trained model; the prompt is printed too."""
    from llmtrain.cli.progress import watching
    from llmtrain.engine.inference import generate_text, load_trained
    from llmtrain.errors import UsageError
    from llmtrain.model.generate import Sampling
    from llmtrain.train.signals import stop_on_signals

    if top_p == 0:
        raise UsageError("--top-p 0 leaves no token to choose", hint="--temperature 0 is greedy")
    sampling = Sampling(temperature, top_k, top_p, repetition_penalty, seed)
    with stop_on_signals() as stop:
        with watching(voice) as observe:
            trained = load_trained(run, device_section(device, force_cpu), observe)
        texts = generate_text(trained, prompt, sampling, max_tokens, stop.check)
        if json:
            said = {"checkpoint": str(trained.checkpoint), "prompt": prompt}
            voice.document({**said, "text": "".join(texts), "seed": seed})
            return 0
        sys.stdout.write(prompt)
        for text in texts:
            sys.stdout.write(text)
            sys.stdout.flush()
        sys.stdout.write("\n")
    return 0
