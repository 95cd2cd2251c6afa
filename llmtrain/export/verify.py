"""Compare an exported model, as another program reads it, with the one it was made from."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch

from llmtrain.errors import LlmtrainError, UsageError
from llmtrain.export.encoding import LIMIT_NATS, Encoding, Format
from llmtrain.export.questions import Prompt, Questions, Reader, Step, ask
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
    """What was compared, and the largest difference."""

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
    found = list(differences_nats(model, questions.prompts, answers.continuations))
    mean, largest = require_close(reader.program, encoding, found)
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
        ids = [tokenizer.separator_id, *tokenizer.encode(text)][:length]
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


def _named(tokenizer: Tokenizer, ids: Sequence[int], place: int) -> str:
    if place >= len(ids):
        return "missing"
    token = ids[place]
    piece = tokenizer.piece(token) if token < tokenizer.vocab_size else "no piece"
    return f"{token} ({piece!r})"


@torch.inference_mode()
def differences_nats(
    model: Decoder, prompts: Sequence[Prompt], continuations: Sequence[Sequence[Step]]
) -> Iterator[tuple[float, str]]:
    """Yield how far each log-probability is from ours, and where, in words.

    A token that was taken though ours gives another a higher probability counts by as much.
    """
    for number, (prompt, steps) in enumerate(zip(prompts, continuations, strict=True)):
        taken = [step.token for step in steps]
        ids_bt = torch.tensor([[*prompt.ids, *taken[:-1]]])
        ours_tv = model.logits(ids_bt)[0, len(prompt.ids) - 1 :].float().log_softmax(-1)
        for place, (step, ours_v) in enumerate(zip(steps, ours_tv, strict=True)):
            where = f"at token {place} after prompt {number}"
            behind = float(ours_v.max() - ours_v[step.token])
            yield behind, f"{where}, token {step.token} is taken, not {int(ours_v.argmax())}"
            for token, theirs in step.top:
                ours = float(ours_v[token])
                words = f"{where}, token {token} has {theirs:.4f} nats, not {ours:.4f}"
                yield abs(ours - theirs), words


def require_close(
    program: str, encoding: Encoding, found: Sequence[tuple[float, str]]
) -> tuple[float, float]:
    """Return the mean and the largest difference in nats. Raises LlmtrainError above the limit.

    Of fp32 the largest is limited. Other encodings are computed with rounded activations, whose
    errors are large for a few tokens: their mean is limited.
    """
    mean, largest = sum(each for each, _ in found) / len(found), max(each for each, _ in found)
    limit = LIMIT_NATS[encoding]
    if (largest if encoding == "f32" else mean) <= limit:
        return mean, largest
    _, where = next(each for each in found if not each[0] <= limit)
    raise LlmtrainError(
        f"{program} computes other probabilities: {where}; the difference is {mean:.2g} nats on "
        f"average, {largest:.2g} at most, and the limit {limit:g}",
        hint=_HINT,
    )
