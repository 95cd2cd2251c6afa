"""`llmtrain generate`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from llmtrain.cli import options
from llmtrain.cli.output import Output
from llmtrain.errors import UsageError
from llmtrain.units import format_bytes

if TYPE_CHECKING:
    from llmtrain.documents.runs import Generate, GeneratedText, Rounding, SampledToken
    from llmtrain.engine.inference import Trained
    from llmtrain.engine.int8 import Int8Cost
    from llmtrain.generate.sampling import Sampling
    from llmtrain.generate.text import Piece, TextRequest, TextStream, TokenText
    from llmtrain.prepare.context import PrepareContext
    from llmtrain.tokenizer import Tokenizer

_MOST_TEXTS = 1000
Quant = Literal["int8"]


def generate(
    output: Output,
    run: options.Run,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", help="The text to continue. Repeatable.")
    ] = None,
    n: Annotated[int, options.whole_number("--n", "Texts for each prompt.", 1)] = 1,
    max_tokens: Annotated[
        int, options.whole_number("--max-tokens", "The most new tokens.", 1)
    ] = 200,
    temperature: options.Temperature = 0.8,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    repetition_penalty: options.RepetitionPenalty = 1.0,
    stop: Annotated[
        list[str] | None,
        typer.Option("--stop", help="End the text before this string. Repeatable."),
    ] = None,
    seed: Annotated[
        int, options.whole_number("--seed", "Equal seeds give equal texts; --n counts up from it.")
    ] = 0,
    top_logprobs: Annotated[
        int | None,
        options.whole_number(
            "--top-logprobs",
            "With --json: how many likely tokens to list at each place.",
            1,
        ),
    ] = None,
    quant: Annotated[
        Quant | None,
        typer.Option(
            "--quant",
            metavar="int8",
            help="int8: round the weights, which is faster on a CPU; what it costs is measured.",
        ),
    ] = None,
    device: options.Device = None,
    force_cpu: options.ForceCpu = False,
) -> int:
    """Continue prompts with a trained model; each is printed before its text.

    A prompt that is longer than the model's context is read from its end, and a text that fills
    the context goes on from its newer half.
    """
    from llmtrain.cli.progress import watching
    from llmtrain.engine.inference import generate_texts, load_trained
    from llmtrain.errors import AbortedError, InterruptedRunError
    from llmtrain.generate.sampling import Sampling
    from llmtrain.generate.text import TextRequest
    from llmtrain.prepare.context import PrepareContext
    from llmtrain.train.signals import stop_on_signals

    prompts = prompt if prompt is not None else [""]
    _refuse(len(prompts), n, top_logprobs, is_json=output.json)
    first = Sampling(temperature, top_k, top_p, repetition_penalty, seed)
    likeliest = (top_logprobs or 0) if output.json else None
    requests = [
        TextRequest(each, sampling, max_tokens, tuple(stop or ()), likeliest=likeliest)
        for each in prompts
        for sampling in _samplings(first, n)
    ]
    with stop_on_signals() as stopping:
        with watching(output) as observe:
            trained = load_trained(run, options.device_section(device, force_cpu), observe)
            work = PrepareContext(trained.plan.workers.value, observe, stopping.check)
            cost = None if quant is None else _rounded(output, trained, work)
            found = generate_texts(
                trained, requests, observe, stopping.check, in_int8=quant is not None
            )
        try:
            if output.json:
                output.document(_document(trained, requests, found, cost))
            else:
                _show(output, requests, found)
        except InterruptedRunError:
            if stopping.signal_name != "SIGINT":
                raise
            if output.json:
                raise AbortedError("interrupted") from None
            output.result("")
            return 130  # somebody has read enough
    return 0


def _refuse(prompts: int, n: int, top_logprobs: int | None, *, is_json: bool) -> None:
    """Raise UsageError for too many texts, and for what is not shown."""
    if top_logprobs is not None and not is_json:
        raise UsageError("--top-logprobs is shown with --json", hint="add --json")
    if prompts * n > _MOST_TEXTS:
        raise UsageError(
            f"{prompts} prompts × --n {n} are more than {_MOST_TEXTS} texts", hint="--n 100"
        )


def _document(
    trained: Trained,
    requests: Sequence[TextRequest],
    found: Iterable[tuple[int, Piece, TextStream]],
    cost: Int8Cost | None,
) -> Generate:
    from llmtrain.documents.runs import Generate

    texts = _documents(requests, found, trained.tokenizer)
    return Generate.of(trained, texts[0], texts=texts, quantization=_rounding(cost))


def _rounded(output: Output, trained: Trained, work: PrepareContext) -> Int8Cost:
    """Round the weights, and note what that costs."""
    from llmtrain.engine.int8 import round_weights

    cost = round_weights(trained, work)
    before, after = cost.bits_per_byte_before, cost.bits_per_byte_after
    change = f"{before:.4f} → {after:.4f} bits per byte ({after / before - 1:+.2%})"
    text = f"{format_bytes(cost.text_bytes)} of {cost.text}"
    output.note(f"weights in int8: {change} on {text}")
    return cost


def _rounding(cost: Int8Cost | None) -> Rounding | None:
    from llmtrain.documents.runs import Rounding

    return None if cost is None else Rounding.of(cost)


def _samplings(first: Sampling, count: int) -> list[Sampling]:
    return [replace(first, seed=first.seed + number) for number in range(count)]


@dataclass(slots=True)
class _Text:
    """A text as far as it is sampled."""

    request: TextRequest
    text: str = ""
    tokens: list[TokenText] = field(default_factory=list)
    stream: TextStream | None = None
    is_finished: bool = False

    def add(self, piece: Piece, stream: TextStream) -> None:
        self.text += piece.text
        self.tokens += piece.tokens
        self.stream = stream
        self.is_finished = stream.finish is not None  # then this is its last piece


def _show(
    output: Output,
    requests: Sequence[TextRequest],
    found: Iterable[tuple[int, Piece, TextStream]],
) -> None:
    """Print the texts in order: the one whose turn it is as it grows, with a line above each."""
    texts = [_Text(request) for request in requests]
    turn = 0
    _show_prompt(output, texts, turn)
    for index, piece, stream in found:
        texts[index].add(piece, stream)
        if index == turn and piece.text:
            output.text(piece.text)
        while turn < len(texts) and texts[turn].is_finished:
            output.result("")
            turn += 1
            if turn < len(texts):
                _show_prompt(output, texts, turn)
                output.text(texts[turn].text)


def _show_prompt(output: Output, texts: Sequence[_Text], turn: int) -> None:
    request = texts[turn].request
    if len(texts) > 1:
        output.result(f"--- {turn + 1} of {len(texts)}, seed {request.sampling.seed} ---")
    assert isinstance(request.prompt, str)
    output.text(request.prompt)


def _documents(
    requests: Sequence[TextRequest],
    found: Iterable[tuple[int, Piece, TextStream]],
    tokenizer: Tokenizer,
) -> list[GeneratedText]:
    from llmtrain.documents.runs import GeneratedText

    texts = [_Text(request) for request in requests]
    for index, piece, stream in found:
        texts[index].add(piece, stream)
    return [
        GeneratedText.of(
            each.stream,
            prompt=each.request.prompt,
            text=each.text,
            seed=each.request.sampling.seed,
            tokens=[_token(token, tokenizer, each.request.likeliest or 0) for token in each.tokens],
        )
        for each in texts
    ]


def _token(sampled: TokenText, tokenizer: Tokenizer, likeliest: int) -> SampledToken:
    from llmtrain.documents.base import present
    from llmtrain.documents.runs import LikelyToken, SampledToken
    from llmtrain.generate.text import spelled_text

    token = sampled.token
    others = [
        LikelyToken.of(id=other, text=spelled_text(tokenizer, other), logprob=logprob)
        for other, logprob in token.likeliest[:likeliest]
    ]
    more = present(likeliest=others)
    return SampledToken.of(id=token.id, text=sampled.text, logprob=token.logprob, **more)
