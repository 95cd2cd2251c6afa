"""What a trained model does: evaluation and generation."""

from __future__ import annotations

from llmtrain.documents.base import (
    NOT_FINITE,
    Document,
    Number,
    Part,
    Text,
    Threshold,
    key,
    thresholds,
)


class Baselines(Part):
    """Bits per byte of the same text without a model."""

    uniform_bpb: Number = key("every piece as likely as any other")
    unigram_bpb: Number = key(
        "pieces by how often the training text has them; null: of a text that is not the run's"
    )
    gzip_bpb: Number = key("by gzip")
    bzip2_bpb: Number = key("by bzip2")
    xz_bpb: Number = key("by xz")


class Eval(Document):
    """`llmtrain eval`: how well a model predicts a text."""

    checkpoint: Text = key("what was evaluated")
    loss_nats_per_token: Number = key(f"mean loss, nats per token; {NOT_FINITE}")
    perplexity: Number = key(f"e to the power of that; {NOT_FINITE}")
    bits_per_byte: Number = key(f"of raw text, so that tokenizers compare; {NOT_FINITE}")
    tokens: int = key("that were predicted")
    bytes: int = key("of raw text")
    baselines: Baselines = key("what other ways need for the same text")
    thresholds: list[Threshold] = thresholds("`--max-bpb`")


class Generate(Document):
    """`llmtrain generate`: one text."""

    checkpoint: Text = key("of which model")
    prompt: Text = key("what was continued")
    text: Text = key("the continuation, without the prompt")
    seed: int = key("equal seeds give equal texts on one machine")
