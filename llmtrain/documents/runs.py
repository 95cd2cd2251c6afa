"""Documents about runs: training, texts, past runs, and the proof that a resume is exact."""

from __future__ import annotations

from typing import Any, Literal

from llmtrain.documents.base import (
    Document,
    Number,
    Part,
    Text,
    Threshold,
    key,
    optional,
    thresholds,
)
from llmtrain.train.events import Stopped


class Predicted(Part):
    """The prediction made before a run."""

    peak_memory_bytes: int = optional(
        "the peak of `peak_memory_bytes`; missing where nothing was trained"
    )
    tokens_per_s: Number = optional("the rate; missing or null: not predicted")
    seconds: Number = optional("of the whole run; missing or null: not predicted")


class Train(Document):
    """`llmtrain train`, also where it was interrupted."""

    run: Text = key("the run directory")
    checkpoint: Text | None = key("the last checkpoint; null: none was saved")
    steps: int = key("optimizer steps since the run began")
    tokens: int = key("tokens trained on since the run began")
    seconds: float = key("seconds of all sessions of the run")
    tokens_per_s: Number = key("tokens a second in this session; null: it did no step")
    train_loss: Number = key("of the last logged step, nats per token")
    val_loss: Number = key("of the last evaluation, nats per token; null: there was none")
    val_bpb: Number = key("of the last evaluation, bits per byte; null: there was none")
    peak_memory_bytes: int = key(
        "the most bytes of the device's memory: resident in all processes, or reserved by torch "
        "on the GPU that holds most"
    )
    energy_joules: Number = key(
        "what this machine's CPU packages and the run's GPUs used in this session, whoever used "
        "them; null: nothing here counts it"
    )
    predicted: Predicted = key("what was predicted of this")
    stopped: Stopped = key("why it ended: all steps done, the time is up, or by a signal")
    thresholds: list[Threshold] = thresholds("`--max-loss`")


class Finetune(Train):
    """`llmtrain finetune`: as of `llmtrain train`; losses are of what the assistant says."""


class LikelyToken(Part):
    """A token that could have been sampled."""

    id: int = key("in the vocabulary")
    text: Text = key("what it spells alone; U+FFFD: a part of a character")
    logprob: Number = key("the logarithm of its probability by the model, in nats")


class SampledToken(LikelyToken):
    """A token that was sampled."""

    likeliest: list[LikelyToken] = optional(
        "the likeliest at its place, the likeliest first; missing without `--top-logprobs`"
    )


class GeneratedText(Part):
    """One continued prompt."""

    prompt: Text = key("what was continued")
    text: Text = key("the continuation, without the prompt")
    seed: int = key("what it was sampled with; equal seeds give equal texts on one machine")
    finish: Literal["stop", "length"] = key(
        "stop: the model or a string of `--stop` ended it; length: `--max-tokens` did"
    )
    prompt_tokens: int = key("tokens of the prompt, with the separator before it")
    tokens: list[SampledToken] = key("of the continuation, in order")


class Rounding(Part):
    """Weights that were rounded to generate with, and what that costs on a sample of text."""

    text: Text = key("of which text the bits per byte are")
    text_bytes: int = key("of it")
    bits_per_byte_before: float = key("with the weights as they were trained")
    bits_per_byte_after: float = key("with the rounded ones")


class Generate(Document):
    """`llmtrain generate`: texts."""

    checkpoint: Text = key("of which model")
    prompt: Text = key("of the first text")
    text: Text = key("of the first text: the continuation, without the prompt")
    seed: int = key("of the first text")
    texts: list[GeneratedText] = key("each prompt in order, each as often as `--n` says")
    quantization: Rounding | None = key("null: without `--quant`")


class Serve(Document):
    """`llmtrain serve`, once requests are answered."""

    url: Text = key("where clients on this machine connect")
    model: Text = key("what clients call the model")
    context: int = key("tokens of a prompt and its text together, at most")
    can_chat: bool = key("whether `/v1/chat/completions` answers")
    slots: int = key("texts that are continued together")
    queue: int = key("texts that may wait for a slot")


class Run(Part):
    """The progress of a run."""

    run: Text = key("the run directory")
    profile: Text | None = key("the profile's name")
    step: int = key("the last logged step")
    tokens: int = key("trained on by then")
    train_loss: Number = key("of that step, nats per token; null: no step was logged")
    val_loss: Number = key("of the last evaluation, nats per token; null: there was none")
    val_bpb: Number = key("of the last evaluation, bits per byte; null: there was none")
    best_val_loss: Number = key("the lowest so far, nats per token; null: there was none")
    elapsed_s: float = key("seconds of all sessions until that step")
    checkpoints: list[Text] = key("names of the saved ones, oldest first")
    status: Text = key("done, time, interrupted, or unfinished")
    state: Literal["running", "finished", "interrupted", "crashed"] = key(
        "running on this machine, finished, stopped by a signal, or ended without a result"
    )
    started: Text | None = key("when its first session began, ISO 8601; null: unknown")
    tags: list[Text] = key("that `runs tag` attached, sorted")


class RunsList(Document):
    """`llmtrain runs list`."""

    runs: list[Run] = key("by name, or as `--sort` says")


class RunsTag(Document):
    """`llmtrain runs tag`."""

    run: Text = key("the run directory")
    tags: list[Text] = key("that it has now, sorted")


class RemovedRun(Part):
    """A run that was removed."""

    run: Text = key("its directory")
    freed_bytes: int = key("of its files")
    left: list[Text] = key("names in the directory that training did not write, which stay")


class RunsRm(Document):
    """`llmtrain runs rm`."""

    removed: list[RemovedRun] = key("in the order of the command")
    freed_bytes: int = key("of all")


class RunsShow(Run, Document):
    """`llmtrain runs show`."""

    record: dict[Text, Any] = key("what run.yaml holds: see `run.yaml`")


class RunsReport(Document):
    """`llmtrain runs report`."""

    runs: list[Text] = key("the run directories, in the order of the command")
    report: Text | None = key("the file; null: with `--watch`")
    report_bytes: int | None = key("its size; null: with `--watch`")
    url: Text | None = key("where `--watch` serves it; null: without it")


class Problem(Part):
    """A checkpoint with a file that is missing or changed, or cannot be read."""

    checkpoint: Text = key("its directory")
    problem: Text = key("what is wrong with it")


class RunsVerify(Document):
    """`llmtrain runs verify`: exit code 1 where anything is damaged or unreadable."""

    good: list[Text] = key("checkpoints whose files all have their recorded hash, oldest first")
    damaged: list[Problem] = key("incomplete or changed ones")
    unreadable: list[Problem] = key("ones that permissions or the disk keep from being read")
    newest_good: Text | None = key("the last of the good ones; null: there is none")


class Kill(Part):
    """One kill, of one process or of all."""

    phase: Text = key(
        "what the run was doing: start-up, data preparation, resume, step, evaluation, sampling, "
        "save, retention"
    )
    aimed_at: Text = key("the phase that the kill was planned for")
    step: int = key("the last logged or saved step")
    victim: Text = key("which rank, or every process")
    gone_after_s: float = key("seconds until no process of the run was left")
    after_checkpoint: bool = key("whether the next start resumed from a checkpoint")


class Ending(Part):
    """The end of a training run."""

    model_sha256: Text = key("of the weights' file")
    optimizer_sha256: Text = key("of the optimizer's file")
    lines: int = key("of metrics")
    seconds: float = key("it took")


class RunsProveResume(Document):
    """`llmtrain runs prove-resume`: exit code 1 where the two differ."""

    equal: bool = key("whether weights, optimizer state and all logged values are bitwise equal")
    first_difference: Text | None = key("where they first differ; null: nowhere")
    steps: int = key("optimizer steps of each training")
    processes: int = key("ranks")
    kills: list[Kill] = key("in order of time")
    resumes: int = key("how often it was resumed")
    resumes_from_checkpoint: int = key("of those, from a checkpoint and not from the beginning")
    uninterrupted: Ending = key("of the uninterrupted training")
    interrupted: Ending = key("of the one that was killed and resumed")
