"""Documents about what was trained, measured and made."""

from __future__ import annotations

from typing import Any, Literal

from llmtrain.choice import (
    ActivationCheckpointing,
    AttentionKernel,
    MatmulPrecision,
    Precision,
)
from llmtrain.documents.base import (
    NOT_FINITE,
    Document,
    Number,
    Part,
    Reasoned,
    Threshold,
    key,
    optional,
    thresholds,
)
from llmtrain.tokenizer.codec import KindName
from llmtrain.train.events import Stopped


class Failure(Part):
    """Why a command failed."""

    code: int = key("the exit code")
    message: str = key("what is wrong: the value, the limit, where it came from")
    hint: str = key("what to type next")
    ways_out: list[str] = optional(
        "commands that would fit, the cheapest change first; missing unless `code` is 3"
    )


class Error(Document):
    """What every command prints on failure, with `--json`."""

    error: Failure = key("why")


class Predicted(Part):
    """What was predicted before a run."""

    peak_memory_bytes: int = optional(
        "the peak of `peak_memory_bytes`; missing where nothing was trained"
    )
    tokens_per_s: Number = optional("the rate; missing or null: nothing was said of it")
    seconds: Number = optional("all of the run; missing or null: nothing was said of it")


class Train(Document):
    """`llmtrain train`, also where it was interrupted."""

    run: str = key("the run directory")
    checkpoint: str | None = key("the last checkpoint; null: none was saved")
    steps: int = key("optimizer steps since the run began")
    tokens: int = key("tokens trained on since the run began")
    seconds: float = key("seconds of all sittings of the run")
    tokens_per_s: Number = key("tokens a second in this sitting; null: no step was done in it")
    train_loss: Number = key("of the last logged step, nats a token")
    val_loss: Number = key("of the last evaluation, nats a token; null: there was none")
    val_bpb: Number = key("of the last evaluation, bits a byte; null: there was none")
    peak_memory_bytes: int = key(
        "the most bytes of the device's memory: resident in all processes, or reserved by torch "
        "on the GPU that holds most"
    )
    energy_joules: Number = key(
        "what this machine's CPU packages and the run's GPUs used in this sitting, whoever used "
        "them; null: nothing here counts it"
    )
    predicted: Predicted = key("what was predicted of this")
    stopped: Stopped = key("why it ended: all steps done, the time is up, or by a signal")
    thresholds: list[Threshold] = thresholds("`--max-loss`")


class Baselines(Part):
    """Bits a byte of the same text without a model."""

    uniform_bpb: Number = key("every piece as likely as any other")
    unigram_bpb: Number = key(
        "pieces by how often the training text has them; null: of a text that is not the run's"
    )
    gzip_bpb: Number = key("by gzip")
    bzip2_bpb: Number = key("by bzip2")
    xz_bpb: Number = key("by xz")


class Eval(Document):
    """`llmtrain eval`: how well a model predicts a text."""

    checkpoint: str = key("what was evaluated")
    loss_nats_per_token: Number = key(f"mean loss, nats a token; {NOT_FINITE}")
    perplexity: Number = key(f"e to the power of that; {NOT_FINITE}")
    bits_per_byte: Number = key(f"of raw text, so that tokenizers compare; {NOT_FINITE}")
    tokens: int = key("that were predicted")
    bytes: int = key("of raw text")
    baselines: Baselines = key("what other ways need for the same text")
    thresholds: list[Threshold] = thresholds("`--max-bpb`")


class Generate(Document):
    """`llmtrain generate`: one text."""

    checkpoint: str = key("of which model")
    prompt: str = key("what was continued")
    text: str = key("the continuation, without the prompt")
    seed: int = key("equal seeds give equal texts on one machine")


class Product(Part):
    """Matrix products of two layers, forward and backward."""

    seconds: float = key("one pass")
    gflops: float = key("billions of operations a second")


class Products(Part):
    """Matrix products by precision."""

    fp32: Product = key("in fp32")
    medium: Product = key("in fp32, by bf16 passes inside")
    bf16: Product = key("in bf16")


class Attention(Part):
    """Attention forward and backward by each kernel."""

    sdpa_s: float = key("torch's kernel, seconds")
    blocks_s: float = key("products over blocks of rows, seconds")


class Block(Part):
    """One block forward and backward on a micro-batch."""

    eager_s: float = key("eager, seconds")
    compiled_s: float = key("compiled, seconds")
    compile_s: float = key("compiling it, seconds")


class MeasuredPlan(Part):
    """The decisions that the times bear on; see `Plan`."""

    precision: Reasoned[Precision] = key("of matrix products")
    matmul_precision: Reasoned[MatmulPrecision] = key("torch's setting for products in fp32")
    attention: Reasoned[AttentionKernel] = key("the kernel")
    compile: Reasoned[bool] = key("whether blocks are compiled")
    threads: Reasoned[int] = key("of one process")
    micro_batch: Reasoned[int] = key("sequences of one forward and backward")
    activation_checkpointing: Reasoned[ActivationCheckpointing] = key(
        "what the backward computes again"
    )


class BenchCpu(Part):
    """What was measured."""

    model: str | None = key("its name; null: unknown")
    cores: int = key("physical cores that may be used")
    threads: int = key("that were used")


class PredictedSpeed(Part):
    """The speed that training is predicted to have."""

    tokens_per_s: Number = key("of all processes")
    step_s: float = key("seconds of an optimizer step")


class DeviceBench(Document):
    """`llmtrain device bench`: this CPU, measured at a profile's work."""

    profile: Reasoned[str] = key("at the work of which profile, and why that")
    cpu: BenchCpu = key("what was measured")
    products: Products = key("matrix products by precision")
    attention: Attention | None = key("null: not measured")
    block: Block | None = key("null: not measured, or it could not be compiled")
    compile_failure: str | None = key("why a block could not be compiled; null: it could")
    plan: MeasuredPlan = key("the decisions that follow")
    predicted: PredictedSpeed | None = key("null: no block was measured as the plan computes it")


class Run(Part):
    """Where a run stands."""

    run: str = key("the run directory")
    profile: str | None = key("the profile's name")
    step: int = key("the last logged step")
    tokens: int = key("trained on by then")
    train_loss: Number = key("of that step, nats a token; null: no step was logged")
    val_loss: Number = key("of the last evaluation, nats a token; null: there was none")
    val_bpb: Number = key("of the last evaluation, bits a byte; null: there was none")
    best_val_loss: Number = key("the lowest so far, nats a token; null: there was none")
    elapsed_s: float = key("seconds of all sittings until that step")
    checkpoints: list[str] = key("names of those that are kept, oldest first")
    status: str = key("done, time, interrupted, or unfinished")


class RunsList(Document):
    """`llmtrain runs list`."""

    runs: list[Run] = key("by name")


class RunsShow(Run, Document):
    """`llmtrain runs show`."""

    record: dict[str, Any] = key("what run.yaml holds: see `run.yaml`")


class Damaged(Part):
    """A checkpoint that is not whole."""

    checkpoint: str = key("its directory")
    problem: str = key("what is wrong with it")


class RunsVerify(Document):
    """`llmtrain runs verify`: exit code 1 where anything is damaged."""

    good: list[str] = key("checkpoints of which every file has its hash, oldest first")
    damaged: list[Damaged] = key("those that are not whole")
    newest_good: str | None = key("the last of the good ones; null: none is")


class Kill(Part):
    """One process or all were killed."""

    phase: str = key(
        "what the run was doing: start-up, data preparation, resume, step, evaluation, sampling, "
        "save, retention"
    )
    aimed_at: str = key("what it was meant to be doing, in the same words")
    step: int = key("the last step that was logged or saved")
    victim: str = key("which rank, or every process")
    gone_after_s: float = key("seconds until no process of the run was left")


class Ending(Part):
    """What a training ended with."""

    model_sha256: str = key("of the weights' file")
    optimizer_sha256: str = key("of the optimizer's file")
    lines: int = key("of metrics")
    seconds: float = key("that it took")


class RunsProveResume(Document):
    """`llmtrain runs prove-resume`: exit code 1 where the two differ."""

    equal: bool = key("whether weights, optimizer and all logged values are, bit for bit")
    first_difference: str | None = key("where they part; null: nowhere")
    steps: int = key("optimizer steps of each training")
    processes: int = key("ranks")
    kills: list[Kill] = key("in the order of time")
    resumes: int = key("how often it was resumed")
    uninterrupted: Ending = key("of the training that was left alone")
    interrupted: Ending = key("of the one that was killed now and then")


class TokenizerTrain(Document):
    """`llmtrain tokenizer train`."""

    out: str = key("the directory")
    kind: Literal["bpe", "unigram"] = key("of model")
    vocab_size: int = key("pieces learnt")
    requested_vocab_size: int = key("pieces asked for")
    vocab_size_reason: str | None = key("why so many; null unless `--vocab-size auto`")
    reserved: int = key("control pieces among them that wait for a use")
    documents: int = key("that were learnt from")
    bytes_seen: int = key("of text that a sample was drawn from")
    bytes_used: int = key("of text that was learnt from")
    skipped: dict[str, int] = key("files that were not read, by reason")
    sha256: str = key("of the tokenizer")


class TokenizerImport(Document):
    """`llmtrain tokenizer import`."""

    out: str = key("the directory")
    source: str = key("the file")
    kind: KindName = key("own: as `tokenizer train` makes them; or the library that reads it")
    vocab_size: int = key("pieces")
    separator: str = key("the piece between documents")
    separator_id: int = key("its id")
    added_separator: bool = key("whether it is new")
    warnings: list[str] = key("text that it changes, or gives other ids than elsewhere")
    sha256: str = key("of the tokenizer")


class TokenizerEncode(Document):
    """`llmtrain tokenizer encode`."""

    ids: list[int] = optional("token ids, in the order of the text; missing with `--out`")
    out: str = optional("the file of ids; missing without `--out`")
    tokens: int = key("how many they are")


class TokenizerDecode(Document):
    """`llmtrain tokenizer decode`."""

    text: str = key("the exact text")


class Fit(Part):
    """How a text becomes tokens."""

    name: str = key("of the text, or of the tokenizer")
    bytes: int = key("of the text")
    tokens: int = key("that it becomes")
    bytes_per_token: Number = key("null: there was no text")


class UsedPiece(Part):
    """A piece, and its use."""

    piece: str = key("as the model spells it")
    times: int = key("how often the text needed it")


class Spelling(Part):
    """A text in pieces."""

    text: str = key("with digits, indentation or spaces")
    pieces: list[str] = key("as the model spells them")


class TokenizerInspect(Document):
    """`llmtrain tokenizer inspect`. Rates are null without `--data`."""

    kind: KindName = key("own: as `tokenizer train` makes them; or the library that reads it")
    vocab_size: int = key("pieces")
    separator: str = key("the piece between documents")
    separator_id: int = key("its id")
    fingerprint: str = key("sha256 of the tokenizer")
    longest_pieces: list[str] = key("longest first, as the model spells them")
    spellings: list[Spelling] = key("of text in which vocabularies differ most")
    sample_bytes: int = key("of the text of `--data`")
    sample_tokens: int = key("that it becomes")
    bytes_per_token: Number = key("of that text")
    byte_fallback_rate: Number = key("share of tokens that are parts of a character, 0 to 1")
    unused_text_pieces: int = key("pieces that the text never needed")
    unused_share: Number = key("of all pieces of text, 0 to 1")
    rarest_pieces: list[UsedPiece] = key("of those that were needed, the rarest first")
    sources: list[Fit] = key("one a `--data`")
    beside: list[Fit] = key("other tokenizers on all of that text")


class Listed(Part):
    """A published schema."""

    name: str = key("what `llmtrain schema NAME` takes")
    describes: str = key("of what, in a line")


class SchemaList(Document):
    """`llmtrain schema`, without a name."""

    schemas: list[Listed] = key("in the order of docs/reference/json.md")
