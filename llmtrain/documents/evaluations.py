"""Documents about evaluations: what `eval` prints of one model, of several, and of tasks."""

from __future__ import annotations

from typing import Literal

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


class Answers(Part):
    """Held-back questions that were answered word for word, and the share's 95% interval."""

    questions: int = key("that were asked: those with short answers, at most `--questions`")
    exact: int = key("that were answered as the data has it, up to spaces around it")
    share: float = key("of the questions")
    share_low: float = key("Wilson's 95% interval of that share: its lower end")
    share_high: float = key("and its upper end")


class Confidence(Part):
    """A confidence interval in bits per byte: how much depends on the text that was drawn."""

    low: Number = key(f"its lower end; {NOT_FINITE}")
    high: Number = key(f"its upper end; {NOT_FINITE}")
    level: float = key("the share of such intervals that hold the true value: 0.95")
    unit: Literal["document", "block"] = key(
        "what was drawn: documents, or contiguous blocks where there are few documents"
    )
    units: int = key("how many of these the text has")


class Preferences(Part):
    """Pairs of answers, beside the model that the run began with."""

    pairs: int = key("that fit into the context")
    loss: Number = key(f"of direct preference optimization, mean nats per pair; {NOT_FINITE}")
    margin: Number = key(f"of the rewards, mean; {NOT_FINITE}")
    accuracy: Number = key("share of pairs whose chosen answer has the larger reward, 0 to 1")
    accuracy_low: Number = key("the lower end of its 95% interval (Wilson)")
    accuracy_high: Number = key("the upper end")


class Evaluated(Part):
    """The loss of a model on a text, in every unit.

    Of a run on conversations, text and tokens are those that the assistant says; of one on pairs of
    answers, those of the chosen ones.
    """

    checkpoint: Text = key("what was evaluated")
    loss_nats_per_token: Number = key(f"mean loss, nats per token; {NOT_FINITE}")
    perplexity: Number = key(f"e to the power of that; {NOT_FINITE}")
    bits_per_byte: Number = key(f"of raw text, so that tokenizers compare; {NOT_FINITE}")
    tokens: int = key("that were predicted")
    bytes: int = key("of raw text")
    interval: Confidence = key("of the bits per byte, by a bootstrap over the text")
    baselines: Baselines = key("what other ways need for the same text")
    answers: Answers | None = key(
        "of conversations, how many short answers are exact; null: other text, or no short answers"
    )
    preferences: Preferences | None = key(
        "of pairs of answers, which the model prefers; null: other text"
    )


class Eval(Evaluated, Document):
    """`llmtrain eval`: how well a model predicts a text."""

    thresholds: list[Threshold] = thresholds("`--max-bpb`")


class Task(Part):
    """A metric of a benchmark task."""

    task: Text = key("its name")
    metric: Text = key("as lm-evaluation-harness calls it: `acc`, `acc_norm`, `bits_per_byte` …")
    value: Number = key(f"the score; {NOT_FINITE}")
    standard_error: Number = key("of the score over its questions; null: unknown")
    chance: Number = key(
        "what guessing reaches, 0 to 1; null: the metric is not a share of right choices"
    )
    examples: int = key("questions that were asked")


class EvalTasks(Document):
    """`llmtrain eval --tasks`: scores on benchmark tasks."""

    checkpoint: Text = key("what was evaluated")
    tasks: list[Task] = key("a score for each metric, in the order of the command")


class ModelDifference(Part):
    """A model beside the first one, on the same documents."""

    checkpoint: Text = key("of the other model")
    bits_per_byte: Number = key(f"its bits per byte less the first one's; {NOT_FINITE}")
    interval: Confidence = key("of that difference")
    is_seen: bool = key("whether the interval leaves out 0")


class EvalCompared(Document):
    """`llmtrain eval` of several models: each on the same documents."""

    models: list[Evaluated] = key("in the order of the command")
    differences: list[ModelDifference] = key("of each later model from the first")
    thresholds: list[Threshold] = thresholds("`--max-bpb`, for each model,")
