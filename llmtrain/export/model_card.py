"""The model card: README.md of a Hugging Face directory, with what is known and no more.

https://huggingface.co/docs/hub/model-cards
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llmtrain.export.provenance import LICENSE_PLACEHOLDER, Provenance
from llmtrain.profile.shape import ModelShape
from llmtrain.units import format_duration

CARD = "README.md"
_NO_LICENSE = (
    "**No licence is stated.** `unknown` is a placeholder: whoever publishes this model has to "
    "name one that the training text allows (`llmtrain export … --license ID`)."
)


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt and the text with which the model went on."""

    prompt: str
    text: str


@dataclass(frozen=True, slots=True)
class Scores:
    """Bits per byte of the model and of what needs no model, on one text."""

    of: str  # the text, in words
    text_bytes: int
    model_bpb: float
    baselines_bpb: dict[str, float]
    run_val_bpb: float | None  # of all validation text, as the run recorded it


def model_card(
    provenance: Provenance,
    shape: ModelShape,
    scores: Scores,
    samples: Sequence[Sample],
    *,
    begins_alike: bool = True,
) -> str:
    """Return the text of the card.

    `begins_alike`: prompts begin with the token between documents, which transformers does not add.
    """
    parts = [_metadata(provenance), f"# {provenance.name}", f"{provenance.summary}."]
    if provenance.license == LICENSE_PLACEHOLDER:
        parts.append(_NO_LICENSE)
    parts += ["## Model", _table(_model_rows(provenance, shape))]
    parts += ["## Training", _table(_training_rows(provenance))]
    parts += ["## Evaluation", _evaluation(scores)]
    if samples:
        parts += ["## Samples", "Unselected, as sampled:"]
        parts += [_quoted(f"{each.prompt}{each.text}") for each in samples]
    parts += ["## Use", _USE.format(prompt=_OWN_PROMPT if begins_alike else _PROMPT)]
    return "\n\n".join(parts) + "\n"


_OWN_PROMPT = (
    'ids = tokenizer(tokenizer.bos_token + "Once upon", '
    'return_tensors="pt", add_special_tokens=False)'
)
_PROMPT = 'ids = tokenizer("Once upon", return_tensors="pt")'
_USE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModelForCausalLM.from_pretrained(".")
{prompt}
```

It continues text; it was not taught to follow instructions unless a chat template says so."""


def _metadata(provenance: Provenance) -> str:
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "pipeline_tag: text-generation",
            f"license: {json.dumps(provenance.license)}",
            "tags:",
            "- llmtrain",
            "---",
        ]
    )


def _model_rows(provenance: Provenance, shape: ModelShape) -> Iterator[tuple[str, str]]:
    yield "parameters", f"{shape.parameters:,}"
    yield "form", "Qwen3" if shape.qk_norm else "Llama"
    yield "layers, width", f"{shape.num_layers}, {shape.hidden_size}"
    yield "heads (keys and values)", f"{shape.num_heads} ({shape.num_kv_heads})"
    yield "vocabulary, context", f"{shape.vocab_size:,}, {shape.context:,} tokens"
    yield "sha256 of the weights", f"`{provenance.checkpoint_sha256}`"


def _training_rows(provenance: Provenance) -> Iterator[tuple[str, str]]:
    unknown = "not recorded"
    yield "text", ", ".join(f"`{each}`" for each in provenance.sources) or unknown
    yield (
        "sha256 of the text",
        f"`{provenance.corpus_sha256}`" if provenance.corpus_sha256 else unknown,
    )
    yield "tokens", unknown if provenance.tokens is None else f"{provenance.tokens:,}"
    yield "steps", unknown if provenance.steps is None else f"{provenance.steps:,}"
    yield "time", unknown if provenance.seconds is None else format_duration(provenance.seconds)
    yield "machine", provenance.machine or unknown
    yield "profile", provenance.profile or unknown
    yield "llmtrain", provenance.llmtrain_version


def _evaluation(scores: Scores) -> str:
    rows = [("this model", f"{scores.model_bpb:.4f}")]
    rows += [(name, f"{value:.4f}") for name, value in scores.baselines_bpb.items()]
    text = f"Bits per byte of {scores.of} ({scores.text_bytes:,} bytes); less is better."
    if scores.run_val_bpb is not None:
        text += f" On all validation text the run recorded {scores.run_val_bpb:.4f}."
    return f"{text}\n\n{_table(rows, head=('predictor', 'bits per byte'))}"


def _table(
    rows: Iterator[tuple[str, str]] | list[tuple[str, str]], head: tuple[str, str] = ("", "")
) -> str:
    cells = [head, ("---", "---"), *rows]
    return "\n".join(f"| {_cell(name)} | {_cell(value)} |" for name, value in cells)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _quoted(text: str) -> str:
    """Return a block that shows the text as it is, whatever it contains."""
    return "\n".join("    " + line for line in text.splitlines()) or "    (nothing)"
