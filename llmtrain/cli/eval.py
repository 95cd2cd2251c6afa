"""`llmtrain eval`."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from llmtrain.cli import options
from llmtrain.cli.output import Output
from llmtrain.cli.thresholds import Threshold, at_most, positive, require_met
from llmtrain.errors import UsageError
from llmtrain.units import counted, format_bytes

if TYPE_CHECKING:
    from llmtrain.cli.output import Part
    from llmtrain.documents.evaluations import (
        Confidence,
        Eval,
        EvalCompared,
        EvalTasks,
        ModelDifference,
    )
    from llmtrain.engine.evaluation import Evaluation
    from llmtrain.profile.schema import DeviceSection


def evaluate(
    output: Output,
    runs: options.Runs,
    data: options.Data = None,
    device: options.Device = None,
    force_cpu: options.ForceCpu = False,
    text_field: options.TextField = "text",
    questions: Annotated[
        int,
        options.whole_number("--questions", "Of conversations: short answers to compare.", 0),
    ] = 100,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--tasks",
            metavar="NAME|FILE.yaml",
            help="Score on a task instead: python_identifiers and python_brackets need no network, "
            "a YAML file or a name is as in lm-evaluation-harness. Repeatable.",
        ),
    ] = None,
    limit: Annotated[
        int | None, options.whole_number("--limit", "Questions of each of --tasks.", 1)
    ] = None,
    max_bpb: Annotated[
        float | None,
        typer.Option(
            "--max-bpb", metavar="BITS", help="Exit with 6 if bits per byte are above this."
        ),
    ] = None,
) -> None:
    """Evaluate a model: nats per token, perplexity, bits per byte, beside baselines.

    Several models are compared on the same documents: those of --data, or the first one's
    validation text.
    """
    from llmtrain.cli.progress import watching
    from llmtrain.documents.base import present
    from llmtrain.documents.evaluations import Eval
    from llmtrain.engine.paired_evaluation import evaluate_models
    from llmtrain.train.signals import stop_on_signals

    positive("--max-bpb", max_bpb)
    section = options.device_section(device, force_cpu)
    if tasks:
        if len(runs) > 1 or data or max_bpb is not None:
            raise UsageError(
                "--tasks evaluates one model on questions, without --data and --max-bpb",
                hint=f"llmtrain eval {shlex.quote(runs[0])} --tasks {shlex.quote(tasks[0])}",
            )
        _answer_tasks(output, runs[0], tasks, section, limit)
        return
    if limit is not None:
        raise UsageError(
            f"--limit {limit} limits the questions of --tasks, and no task is named",
            hint="add --tasks NAME, or leave --limit out",
        )
    with stop_on_signals() as stop, watching(output) as observe:
        found = evaluate_models(
            runs, data or [], section, observe, stop.check, text_field, questions
        )
    limits = [limit for each in found for limit in _thresholds(each, max_bpb)]
    if len(found) == 1:
        document = Eval.of(found[0], **present(thresholds=limits))
        output.answer(document, _parts(document))
    else:
        _answer_compared(output, found, limits)
    require_met(limits, hint=f"llmtrain runs show {shlex.quote(runs[0])} shows the run")


def _answer_tasks(
    output: Output, run: str, tasks: list[str], device: DeviceSection, limit: int | None
) -> None:
    """Score a model on tasks, and print a row for each metric."""
    from llmtrain.cli.progress import watching
    from llmtrain.documents.evaluations import EvalTasks, Task
    from llmtrain.engine.task_evaluation import evaluate_tasks
    from llmtrain.train.signals import stop_on_signals

    with stop_on_signals() as stop, watching(output) as observe:
        trained, scores = evaluate_tasks(run, tasks, device, observe, stop.check, limit)
    document = EvalTasks.of(
        checkpoint=trained.checkpoint, tasks=[Task.of(score) for score in scores]
    )
    output.answer(document, _task_parts(document))


def _task_parts(document: EvalTasks) -> Iterator[Part]:
    from llmtrain.cli.tables import rows_table

    rows = (
        (
            each.task,
            _figure(each.value),
            each.metric,
            "-" if each.standard_error is None else f"± {each.standard_error:.4f}",
            "-" if each.chance is None else f"{each.chance:.4f}",
            f"{each.examples:,}",
        )
        for each in document.tasks
    )
    heads = ("task", "score", "metric", "standard error", "chance", "questions")
    yield rows_table("", heads, rows)


def _thresholds(evaluation: Evaluation, max_bpb: float | None) -> list[Threshold]:
    name = f"bits per byte of {evaluation.checkpoint}"
    unknown = f"{name} are not a finite number"
    return at_most("--max-bpb", max_bpb, evaluation.bits_per_byte, is_named=name, unknown=unknown)


def _answer_compared(
    output: Output, found: Sequence[Evaluation], limits: Sequence[Threshold]
) -> None:
    from llmtrain.documents.base import present
    from llmtrain.documents.evaluations import EvalCompared, Evaluated, ModelDifference
    from llmtrain.eval.bootstrap import paired_difference

    first, *others = found
    differences = []
    for each in others:
        difference = paired_difference(first.losses, each.losses)
        differences.append(ModelDifference.of(difference, checkpoint=each.checkpoint))
    document = EvalCompared.of(
        models=[Evaluated.of(each) for each in found],
        differences=differences,
        **present(thresholds=limits),
    )
    output.answer(document, _compared_parts(document, output))


def _compared_parts(document: EvalCompared, output: Output) -> Iterator[Part]:
    """Yield a table of the models, and a line on each difference from the first."""
    from llmtrain.cli.tables import rows_table

    rows = (
        (each.checkpoint, _figure(each.bits_per_byte), _ends(each.interval))
        for each in document.models
    )
    level = f"{document.models[0].interval.level:.0%} interval"
    yield rows_table("bits per byte", ("checkpoint", "bits/byte", level), rows)
    yield ""
    for difference in document.differences:
        words = f"{difference.checkpoint}: {difference_in_words(difference)}"
        yield from output.wrapped(words)


def difference_in_words(difference: ModelDifference) -> str:
    """Return whether a model is better than the first, or no difference was seen."""
    bits = difference.bits_per_byte
    if bits is None or not math.isfinite(bits):
        return "one of the losses is not a finite number"
    how = (
        "no difference seen from"
        if not difference.is_seen
        else ("better than" if bits < 0 else "worse than")
    )
    return f"{how} the first: {bits:+.4f} bits per byte, {_interval(difference.interval)}"


def _figure(value: float | None) -> str:
    return "not finite" if value is None or not math.isfinite(value) else f"{value:.4f}"


def _interval(interval: Confidence) -> str:
    """Return an interval as `1.23 to 1.34 (95% interval over 120 documents)`."""
    ends, units = _ends(interval), counted(interval.units, interval.unit)
    return ends if ends == _UNKNOWN else f"{ends} ({interval.level:.0%} interval over {units})"


def _ends(interval: Confidence) -> str:
    low, high = interval.low, interval.high
    if low is None or high is None or not math.isfinite(low + high):
        return _UNKNOWN
    return f"{low:.4f} to {high:.4f}"


_UNKNOWN = "interval unknown"
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
        ("", _interval(evaluation.interval)),
        *(
            (f"  {name.removesuffix('_bpb')}", f"{v:.4f}  {_BASELINES[name]}")
            for name, v in baselines.items()
        ),
        *_answer_rows(evaluation),
        *_preference_rows(evaluation),
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


def _preference_rows(evaluation: Eval) -> Iterator[tuple[str, str]]:
    found = evaluation.preferences
    if found is None or found.accuracy is None:
        return
    low, high = (
        0.0 if each is None else each for each in (found.accuracy_low, found.accuracy_high)
    )
    yield "pairs", f"{found.pairs:,}; loss {_figure(found.loss)}, margin {_figure(found.margin)}"
    yield "prefers as chosen", f"{found.accuracy:.1%} ({low:.1%} to {high:.1%})"


def verdict_of(bits_per_byte: float | None, baselines: Mapping[str, float]) -> str:
    """Return in words where the model is among what needs no model; less is better."""
    if bits_per_byte is None or not math.isfinite(bits_per_byte):
        return "the loss is not a finite number: the model cannot be used"
    names = {name: name.removesuffix("_bpb") for name in baselines}
    better = [names[n] for n, value in baselines.items() if bits_per_byte < value]
    worse = [names[n] for n, value in baselines.items() if bits_per_byte >= value]
    if not worse:
        return f"better than all of these: {', '.join(better)}"
    if not better:
        return f"no better than any of these: {', '.join(worse)}; train it longer"
    return f"better than {', '.join(better)}; not better than {', '.join(worse)}"
