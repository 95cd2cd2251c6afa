"""Compare an exported model, as another program reads it, with the one it was made from."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean

import torch

from llmtrain.errors import LlmtrainError, UsageError
from llmtrain.export.encoding import Encoding, Format
from llmtrain.export.questions import Prompt, Questions, Reader, Step, ask
from llmtrain.export.rounding import rounded_inputs
from llmtrain.model.decoder import Decoder
from llmtrain.tokenizer import Tokenizer
from llmtrain.tokenizer.probes import PROBES

READERS: dict[Format, Reader] = {
    "gguf": Reader("llama.cpp", "llmtrain.export.llama_process", "xllamacpp"),
    "hf": Reader("transformers", "llmtrain.export.transformers_process", "transformers"),
}
_INSTALL: dict[Format, str] = {
    "gguf": "pip install 'llmtrain[llama]'",
    "hf": "pip install transformers",
}
_TEXTS = 222
_MIXED_TEXTS = 64
_SHORTEST_TEXT, _LONGEST_TEXT = 16, 2_000  # characters
_PROMPTS = 10
# llama.cpp's threads wait for each other by spinning, which costs a small model more than it saves.
_SMALL_PARAMETERS = 200_000_000
_PROMPT_TOKENS = 64
_LONG_CONTINUATION, _CONTINUATION = 64, 4  # tokens
_EXACT_NATS = 1e-4  # at most, where both compute in fp32
# Where the reader rounds what it multiplies, differences were 0.84 to 0.99 of what the same
# rounding changes here, on average, and over 10 of it with two tensors swapped.
_ROUNDING_SHARE = 2.0
_HINT = "nothing was exported; report it with the text above, or --no-verify writes it all the same"
_PARTS = (
    *("the", " The", "THE", "don't", "I'LL", " naïve", "e\u0301", "ﬁ", "中文", "日本語", "한국어"),
    *(
        "שלום",
        "مرحبا",
        "привет",
        "ελληνικά",
        "😀",
        "👩‍💻",
        "🇫🇷",
        "\u200b",
        "\ufeff",
        "\u00a0",
        "\u3000",
    ),
    *(" ", "  ", "    ", "\n", "\r\n", "\n\n\n", "\t", "0", "12", "345", "6789", "3.14", "½", "٣"),
    *("<s>", "<unk>", "<|endoftext|>", "<0x0A>", "[INST]", "#", "//", "==", "!=", "->", "{}", "_a"),
)


@dataclass(frozen=True, slots=True)
class Verification:
    """A comparison of ids and log-probabilities with another program's, that agreed."""

    program: str
    program_version: str
    texts: int
    tokens: int  # of the texts
    log_probabilities: int
    mean_difference_nats: float
    largest_difference_nats: float
    greedy_tokens: int
    known_differences: tuple[str, ...]


def can_verify(form: Format) -> bool:
    """Return whether the program that reads the format is installed."""
    return find_spec(READERS[form].package) is not None


def require_reader(form: Format) -> None:
    """Raise UsageError unless the program that reads the format is installed."""
    if not can_verify(form):
        raise UsageError(
            f"--verify needs {READERS[form].program} to read the model, and "
            f"{READERS[form].package} is not installed",
            hint=_INSTALL[form],
        )


def verify(
    form: Format,
    path: Path,
    model: Decoder,
    tokenizer: Tokenizer,
    encoding: Encoding,
    sample: str,
    threads: int,
    check_stop: Callable[[], None],
    differs: Callable[[str], bool] = lambda _: False,
    known_differences: tuple[str, ...] = (),
) -> Verification:
    """Compare ids, log-probabilities and greedy continuations.

    `model` has the weights as the file holds them; `sample` is text of the kind that it was trained
    on; texts that `differs` are known to have other ids. Raises LlmtrainError, with the first
    difference.
    """
    reader = READERS[form]
    texts = [text for text in verification_texts(sample) if not differs(text)][:_TEXTS]
    questions = Questions(
        context=model.shape.context,
        texts=texts,
        prompts=_prompts(tokenizer, sample, model.shape.context),
    )
    threads = 1 if model.shape.parameters < _SMALL_PARAMETERS else threads
    answers = ask(reader, path, threads, questions, check_stop)
    ids = [tokenizer.encode(text) for text in texts]
    require_equal_ids(tokenizer, reader.program, texts, ids, answers.ids)
    if form == "gguf" or tokenizer.kind.ends is not None:  # else its user puts the separator there
        _require_equal_prefix(tokenizer, reader.program, answers.prefix)
    arithmetic = encoding if form == "gguf" else "f32"  # transformers is told to use fp32
    found = list(differences(model, questions.prompts, answers.continuations, arithmetic))
    mean, largest = require_close(reader.program, arithmetic, found)
    return Verification(
        program=reader.program,
        program_version=version(reader.package),
        texts=len(texts),
        tokens=sum(map(len, ids)),
        log_probabilities=sum(len(step.top) for each in answers.continuations for step in each),
        mean_difference_nats=mean,
        largest_difference_nats=largest,
        greedy_tokens=sum(map(len, answers.continuations)),
        known_differences=known_differences,
    )


def verification_texts(sample: str) -> list[str]:
    """Return hard cases, random mixtures of scripts, spaces and names, and parts of `sample`."""
    draw = random.Random(0)
    mixed = ["".join(draw.choices(_PARTS, k=draw.randint(1, 40))) for _ in range(_TEXTS)]
    wanted = _TEXTS - len(PROBES) - _MIXED_TEXTS
    size = max(_SHORTEST_TEXT, min(_LONGEST_TEXT, len(sample) // wanted))
    parts = [sample[start : start + size] for start in range(0, len(sample), size)][:wanted]
    return [*PROBES, *mixed[:_MIXED_TEXTS], *parts, *mixed[_MIXED_TEXTS:]]


def _prompts(tokenizer: Tokenizer, sample: str, context: int) -> list[Prompt]:
    """Return beginnings of a document from all over the sample, each with room to go on."""
    length = min(_PROMPT_TOKENS, context // 2)
    stride = max(1, len(sample) // _PROMPTS)
    prompts = []
    for number in range(_PROMPTS):
        text = sample[number * stride :][:_LONGEST_TEXT]
        ids = list(tokenizer.prompt_ids(tokenizer.encode(text)))[:length]
        wanted = _CONTINUATION if number else _LONG_CONTINUATION
        prompts.append(Prompt(ids=ids, tokens=min(wanted, context - len(ids))))
    return prompts


def require_equal_ids(
    tokenizer: Tokenizer,
    program: str,
    texts: Sequence[str],
    ours: Sequence[Sequence[int]],
    theirs: Sequence[Sequence[int]],
) -> None:
    """Raise LlmtrainError at the first text whose ids differ."""
    differing = [n for n, each in enumerate(ours) if list(each) != list(theirs[n])]
    if not differing:
        return
    first = differing[0]
    a, b = ours[first], theirs[first]
    place = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(a))
    raise LlmtrainError(
        f"{program} gives other ids to {len(differing)} of {len(texts)} texts: in "
        f"{texts[first][:60]!r} token {place} is {_named(tokenizer, b, place)}, not "
        f"{_named(tokenizer, a, place)}",
        hint=_HINT,
    )


def _require_equal_prefix(tokenizer: Tokenizer, program: str, prefix: Sequence[int]) -> None:
    """Raise LlmtrainError if the program begins prompts with other ids."""
    ours = [tokenizer.separator_id] if tokenizer.adds_bos else []
    if list(prefix) != ours:
        names = [_named(tokenizer, each, 0) if each else "nothing" for each in (prefix, ours)]
        raise LlmtrainError(
            f"{program} begins prompts with {names[0]}, not with {names[1]}", hint=_HINT
        )


def _named(tokenizer: Tokenizer, ids: Sequence[int], place: int) -> str:
    if place >= len(ids):
        return "missing"
    token = ids[place]
    piece = tokenizer.piece(token) if token < tokenizer.vocab_size else "no piece"
    return f"{token} ({piece!r})"


@dataclass(frozen=True, slots=True)
class Difference:
    """The distance of a log-probability from ours, and that by rounding alone, in nats."""

    nats: float
    rounding_nats: float
    where: str


@torch.inference_mode()
def differences(
    model: Decoder,
    prompts: Sequence[Prompt],
    continuations: Sequence[Sequence[Step]],
    arithmetic: Encoding,
) -> Iterator[Difference]:
    """Yield each log-probability's difference from ours.

    A token that was taken though ours gives another a higher probability counts by as much.
    """
    for number, (prompt, steps) in enumerate(zip(prompts, continuations, strict=True)):
        ids = [*prompt.ids, *(step.token for step in steps[:-1])]
        ours_tv = _log_probabilities(model, ids)[-len(steps) :]
        with rounded_inputs(model, arithmetic):
            rounding_tv = (_log_probabilities(model, ids)[-len(steps) :] - ours_tv).abs()
        for place, (step, ours_v) in enumerate(zip(steps, ours_tv, strict=True)):
            where = f"at token {place} after prompt {number}"
            best = int(ours_v.argmax())
            yield Difference(
                nats=float(ours_v[best] - ours_v[step.token]),
                rounding_nats=float(rounding_tv[place, [best, step.token]].max()),
                where=f"{where}, token {step.token} is taken, not {best}",
            )
            for token, theirs in step.top:
                ours = float(ours_v[token])
                yield Difference(
                    nats=abs(ours - theirs),
                    rounding_nats=float(rounding_tv[place, token]),
                    where=f"{where}, token {token} has {theirs:.4f} nats, not {ours:.4f}",
                )


def _log_probabilities(model: Decoder, ids: Sequence[int]) -> torch.Tensor:
    return model.logits(torch.tensor([ids]))[0].float().log_softmax(-1)


def require_close(
    program: str, arithmetic: Encoding, found: Sequence[Difference]
) -> tuple[float, float]:
    """Return the mean and the largest difference in nats. Raises LlmtrainError above the limit.

    Of fp32 the largest is limited. Where the reader rounds, a few tokens differ by much: the mean
    is limited, by what the same rounding does to our own.
    """
    largest, mean = max(each.nats for each in found), fmean(each.nats for each in found)
    if arithmetic == "f32":
        seen, limit = largest, _EXACT_NATS
    else:
        rounding = fmean(each.rounding_nats for each in found)
        seen, limit = mean, max(_EXACT_NATS, _ROUNDING_SHARE * rounding)
    if seen <= limit:
        return mean, largest
    first = next((each for each in found if not each.nats <= limit), found[0])
    raise LlmtrainError(
        f"{program} computes other probabilities: {first.where}; the difference is {mean:.2g} nats "
        f"on average, {largest:.2g} at most, and the limit {limit:.2g}",
        hint=_HINT,
    )
