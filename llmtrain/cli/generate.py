"""`llmtrain generate`."""

from __future__ import annotations

from typing import Annotated

import typer

from llmtrain.cli import options
from llmtrain.cli.output import Output


def generate(
    output: Output,
    run: options.Run,
    prompt: Annotated[str, typer.Option("--prompt", help="The text to continue.")] = "",
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, help="The most new tokens.")
    ] = 200,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0.0, help="0: always the most likely token.")
    ] = 0.8,
    top_k: Annotated[
        int | None, typer.Option("--top-k", min=1, help="Sample from the k most likely tokens.")
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            "--top-p",
            min=0.0,
            max=1.0,
            help="Sample from the most likely tokens that together have this probability.",
        ),
    ] = None,
    repetition_penalty: Annotated[
        float, typer.Option("--repetition-penalty", min=1.0, help="Above 1: fewer repetitions.")
    ] = 1.0,
    seed: Annotated[int, typer.Option("--seed", help="Equal seeds give equal texts.")] = 0,
    device: options.Device = None,
    force_cpu: options.ForceCpu = False,
) -> int:
    """Continue a prompt with a trained model; the prompt is printed first."""
    from llmtrain.cli.progress import watching
    from llmtrain.documents.runs import Generate
    from llmtrain.engine.inference import generate_text, load_trained
    from llmtrain.errors import AbortedError, InterruptedRunError, UsageError
    from llmtrain.model.generate import Sampling
    from llmtrain.train.signals import stop_on_signals

    code = 0
    if top_p == 0:
        raise UsageError("--top-p 0 leaves no token to choose", hint="--temperature 0 is greedy")
    sampling = Sampling(temperature, top_k, top_p, repetition_penalty, seed)
    with stop_on_signals() as stop:
        with watching(output) as observe:
            trained = load_trained(run, options.device_section(device, force_cpu), observe)
        texts = generate_text(trained, prompt, sampling, max_tokens, stop.check)
        try:
            if output.json:
                text = "".join(texts)
                output.document(Generate.of(trained, prompt=prompt, text=text, seed=seed))
                return 0
            output.text(prompt)
            for text in texts:
                output.text(text)
        except InterruptedRunError:
            if stop.signal_name != "SIGINT":
                raise
            if output.json:
                raise AbortedError("interrupted") from None
            code = 130  # somebody has read enough
        output.result("")
    return code
