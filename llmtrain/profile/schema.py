"""The schema of a profile: frozen, without unknown keys or machine-dependent defaults.

`auto` means that the plan chooses the value and states a reason; the choice is stored in the plan
and never in the profile.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from llmtrain.profile.quantities import (
    WITH_OFF,
    Duration,
    PositiveCount,
    PositiveFloat,
    PositiveInt,
    Threads,
)

Auto = Literal["auto"]
_Checkpointing = Annotated[Literal["auto", "off", "selective", "full"], WITH_OFF]
_NumaBinding = Annotated[Literal["auto", "off"], WITH_OFF]
TrackerName = Literal["tensorboard", "trackio", "wandb", "mlflow"]
Duplicates = Literal["keep", "drop_exact", "drop_near"]
_LONGEST_TIMEOUT_S = 1e6
# Of the outer step, by the optimizer inside: docs/measurements/clusters.md.
_OUTER_LEARNING_RATES = {"muon": 1.0, "adamw": 0.5}

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
LANGUAGE_PATTERN = r"^[a-z]{2,3}$"
LanguageCode = Annotated[str, Field(pattern=LANGUAGE_PATTERN)]  # ISO 639


class Section(BaseModel):
    """A part of a profile: immutable, strictly typed, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ModelSection(Section):
    """The decoder's architecture: that of Qwen3, or of Llama if `qk_norm` is false."""

    vocab_size: Annotated[int, Field(ge=300, lt=2**31)] = 32000
    hidden_size: PositiveInt = 384
    intermediate_size: PositiveInt = 1024
    num_layers: PositiveInt = 8
    num_heads: PositiveInt = 6
    num_kv_heads: PositiveInt | Auto = "auto"  # auto: num_heads
    head_dim: PositiveInt | Auto = "auto"  # auto: hidden_size / num_heads
    context: Annotated[int, Field(ge=8, lt=2**31)] = 512
    rope_theta: PositiveFloat = 10000.0
    norm_epsilon: PositiveFloat = 1e-6
    qk_norm: bool = True
    tie_embeddings: bool = True
    # A run, a model directory or hf://OWNER/NAME to continue from, whose shape replaces this one.
    init_from: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelSection:
        if self.head_dim == "auto" and self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not divisible by num_heads {self.num_heads}; "
                f"choose another number of heads or set head_dim"
            )
        if self.num_kv_heads != "auto" and self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not divisible by num_kv_heads {self.num_kv_heads}"
            )
        head_dim = self.hidden_size // self.num_heads if self.head_dim == "auto" else self.head_dim
        if head_dim % 2:
            of = f", of hidden_size {self.hidden_size} and num_heads {self.num_heads}"
            made_of = of if self.head_dim == "auto" else ""
            raise ValueError(f"head_dim {head_dim} is odd{made_of}; rotary embeddings turn pairs")
        return self


class SourceSection(Section):
    """A data source; its share of the training tokens is its weight / the sum of all weights.

    The share does not depend on the source's size; a source that runs out is repeated in another
    order.
    """

    spec: Annotated[str, Field(min_length=1)]
    weight: PositiveFloat | None = None  # None for all sources: shares in proportion to size


def _source_form(value: object) -> str:
    return "mapping" if isinstance(value, (dict, SourceSection)) else "text"


Source = Annotated[
    Annotated[str, Tag("text")] | Annotated[SourceSection, Tag("mapping")],
    Discriminator(_source_form),
]


class FiltersSection(Section):
    """Filters by properties of a document; a filter that is not set excludes nothing."""

    min_bytes: PositiveInt | None = None
    max_bytes: Annotated[int, Field(ge=1, lt=2**25)] | None = None  # longer texts are read in parts
    languages: Annotated[tuple[LanguageCode, ...], Field(min_length=1)] | None = None
    max_repetition: Annotated[float, Field(ge=0, lt=1)] | None = None  # Gopher: 0.16 to 0.3

    @model_validator(mode="after")
    def _some_length_passes(self) -> FiltersSection:
        least, most = self.min_bytes, self.max_bytes
        if least is not None and most is not None and least > most:
            raise ValueError(f"min_bytes {least} is above max_bytes {most}: nothing would be left")
        return self


class DataSection(Section):
    """The training data and its preparation."""

    sources: Annotated[tuple[Source, ...], Field(min_length=1)] = ("builtin:python",)
    include: tuple[str, ...] = ()  # .gitignore patterns of files to read; empty: all
    exclude: tuple[str, ...] = ()
    text_field: Annotated[str, Field(min_length=1)] = "text"
    # chat: conversations; only answers carry loss. preferences: pairs of answers, for DPO.
    rows: Literal["text", "chat", "preferences"] = "text"
    on_error: Literal["stop", "skip"] = "stop"  # for an invalid record
    validation: Annotated[str, Field(min_length=1)] | None = None  # a source; validation only
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.02
    mask_documents: bool = False  # limit attention to the document, in windows of several
    packing: Literal["concatenate", "best_fit"] = "concatenate"  # of documents into windows
    tokenizer: Annotated[str, Field(min_length=1)] = "auto"  # or a tokenizer's directory or file
    tokenizer_kind: Literal["bpe", "unigram"] = "bpe"  # the kind trained for `auto`
    tokenizer_reserve: Annotated[int, Field(ge=0, le=1024)] = 0  # control pieces to add
    duplicates: Duplicates = "keep"  # the first of equal or similar documents is kept
    filters: FiltersSection = FiltersSection()

    @property
    def has_conversations(self) -> bool:
        """True if rows are conversations, or pairs of them."""
        return self.rows != "text"

    @property
    def masks_documents(self) -> bool:
        """True if attention is limited to the document: always for conversations."""
        return self.mask_documents or self.has_conversations

    @property
    def pads_windows(self) -> bool:
        """True if windows have tokens that do not count in the loss."""
        return self.packing != "concatenate" or self.has_conversations

    @property
    def specs(self) -> tuple[str, ...]:
        """Specifications of the sources, without weights."""
        return tuple(s.spec if isinstance(s, SourceSection) else s for s in self.sources)

    @property
    def weights(self) -> tuple[float, ...] | None:
        """One weight for each source; None if shares are in proportion to size."""
        found = [s.weight for s in self.sources if isinstance(s, SourceSection)]
        given = tuple(weight for weight in found if weight is not None)
        return given or None

    @model_validator(mode="after")
    def _all_have_weights_or_none(self) -> DataSection:
        if self.weights is not None and len(self.weights) < len(self.sources):
            raise ValueError("some sources have a weight and others none; give one to each")
        return self


class TrainSection(Section):
    """Batch size and length of training: at most one of steps, tokens, epochs and time."""

    tokens_per_step: PositiveCount | Auto = "auto"  # auto: from the total of training tokens
    steps: PositiveCount | None = None
    tokens: PositiveCount | None = None
    epochs: Annotated[float, Field(gt=0, lt=1e6)] | None = None
    time: Annotated[Duration, Field(gt=0, lt=1e9)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    micro_batch: PositiveInt | Auto = "auto"  # sequences in one forward and backward pass
    gradient_clip: PositiveFloat | None = 1.0  # maximum global norm
    skip_loss_spikes: bool = True  # skip the update if the loss jumps above recent ones
    log_every_steps: PositiveInt = 10
    # Steps that each process takes by itself before weights are averaged; 1: gradients are, in
    # every step. auto: by the time of an exchange between the ranks, when they meet.
    sync_every: PositiveInt | Auto = 1
    sync_precision: Literal["fp32", "bf16"] = "fp32"  # of what they send then
    sync_shares: Literal["equal", "speed"] = "equal"  # of a step's windows, among processes
    # Steps of the next round beside which the exchange travels; 0: processes wait for it.
    sync_delay: Annotated[int, Field(ge=0)] = 0

    @property
    def chosen_tokens_per_step(self) -> int:
        """`tokens_per_step` as a number. Raises ValueError if it is still "auto"."""
        if self.tokens_per_step == "auto":
            raise ValueError("train.tokens_per_step is still to be chosen")
        return self.tokens_per_step

    @property
    def chosen_sync_every(self) -> int:
        """`sync_every` as a number. Raises ValueError if it is still "auto"."""
        if self.sync_every == "auto":
            raise ValueError("train.sync_every is still to be chosen")
        return self.sync_every


class OptimSection(Section):
    """The optimizer, with one learning rate for each parameter role.

    It is Muon (Jordan et al. 2024) for hidden matrices and AdamW (Loshchilov and Hutter 2019) for
    the other parameters, or AdamW for all.
    """

    name: Literal["muon", "adamw"] = "muon"
    learning_rate: PositiveFloat | Auto = "auto"  # of hidden matrices; with adamw also of gains
    embedding_learning_rate: PositiveFloat | Auto = "auto"  # with muon also of gains
    head_learning_rate: PositiveFloat | Auto = "auto"  # auto: the embedding's; untied head only
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9  # muon only
    weight_decay: Annotated[float, Field(ge=0, lt=1e30)] = 0.1  # hidden matrices only
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    epsilon: PositiveFloat = 1e-8
    schedule: Literal["wsd", "cosine", "linear"] = "wsd"
    warmup_steps: Annotated[int, Field(ge=0, lt=2**31)] = 50
    decay_fraction: Annotated[float, Field(ge=0, le=1)] = 0.5  # of the horizon; wsd only
    final_learning_rate_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    # With `train.sync_every`: SGD with Nesterov momentum on the weights that processes agree on.
    outer_learning_rate: PositiveFloat | Auto = "auto"
    outer_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
    # The share of a process's own weights after `train.sync_delay`; the rest is what all agreed on.
    outer_mixing: Annotated[float, Field(ge=0, lt=1)] = 0.5

    @property
    def chosen_outer_learning_rate(self) -> float:
        """The rate of the outer step: as given, or by what trains best with the inner optimizer."""
        if self.outer_learning_rate != "auto":
            return self.outer_learning_rate
        return _OUTER_LEARNING_RATES[self.name]


LoraTarget = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class LoraSection(Section):
    """Low-rank adapters (Hu et al. 2021), trained beside weights that stay as they are."""

    rank: Annotated[int, Field(ge=1, le=4096)] | None = None  # None: all weights are trained
    alpha: PositiveFloat = 32.0  # an adapter's product is scaled by alpha / rank
    targets: Literal["all"] | Annotated[tuple[LoraTarget, ...], Field(min_length=1)] = "all"


class DpoSection(Section):
    """Direct preference optimization (Rafailov et al. 2023), where `data.rows` are preferences."""

    beta: PositiveFloat = 0.1  # larger: stay closer to the model that training began with


class EvalSection(Section):
    """Evaluation and text samples during the run."""

    every_steps: PositiveInt = 250
    tokens: PositiveCount = 65536  # of validation text, the same in every evaluation
    patience: PositiveInt | None = None  # evaluations without a new best before stopping early
    sample_every_steps: PositiveInt | None = 500
    sample_tokens: PositiveInt = 64
    # auto: "def" and "import" for the built-in Python, else the first words of the validation text.
    prompts: tuple[str, ...] | Auto = "auto"


class CheckpointSection(Section):
    """Checkpoint intervals in steps or minutes; a run is always saved at its end."""

    every_steps: PositiveInt | None = None
    every_minutes: PositiveFloat | None = None
    keep_last: PositiveInt = 2
    keep_best: bool = True


class DeviceSection(Section):
    """Hardware options; the plan chooses those that are `auto`."""

    kind: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    force_cpu: bool = False
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    threads: Threads | Auto = "auto"  # in each process
    attention: Literal["auto", "sdpa", "blocks", "flex", "native"] = "auto"
    loss: Literal["auto", "chunks", "native", "triton"] = "auto"
    block_kernels: Literal["auto", "torch", "native", "triton"] = "auto"  # beside attention
    activation_checkpointing: _Checkpointing = "auto"
    compile: bool | Auto = "auto"
    numa_binding: _NumaBinding = "auto"  # of several processes on a CPU
    workers: Threads | Auto = "auto"  # processes that tokenize
    pin_memory: bool | Auto = "auto"
    backend: Literal["auto", "gloo", "nccl"] = "auto"
    processes: Threads | Auto = "auto"
    # Whether each process has all weights and optimizer state, or a part of them: of all processes,
    # or of those of its machine.
    sharding: Literal["auto", "replicate", "shard", "hybrid"] = "auto"
    # How long ranks wait for a rank that does not respond.
    collective_timeout: Annotated[Duration, Field(ge=1, lt=_LONGEST_TIMEOUT_S)] = 600.0


class Profile(Section):
    """All settings of a run; values that depend on the machine are in the plan."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)] = "custom"
    log_to: tuple[TrackerName, ...] = ()  # trackers that get the metrics too
    report: bool = False  # write report.html in the run directory at the end of each session
    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    train: TrainSection = TrainSection()
    optim: OptimSection = OptimSection()
    lora: LoraSection = LoraSection()
    dpo: DpoSection = DpoSection()
    eval: EvalSection = EvalSection()
    checkpoint: CheckpointSection = CheckpointSection()
    device: DeviceSection = DeviceSection()

    @model_validator(mode="after")
    def _adapters_are_possible(self) -> Profile:
        if self.lora.rank is None:
            return self
        if self.model.init_from is None:
            raise ValueError("lora.rank: adapters are trained beside a model; name model.init_from")
        if self.optim.name != "adamw":
            raise ValueError("lora.rank: adapters are trained by optim.name adamw")
        return self

    @model_validator(mode="after")
    def _sharding_is_possible(self) -> Profile:
        if self.device.sharding not in ("shard", "hybrid"):
            return self
        if self.lora.rank is not None:
            raise ValueError("device.sharding: a model that adapters are beside is not sharded")
        if self.data.rows == "preferences":
            raise ValueError("device.sharding: training on pairs of answers is not sharded")
        return self

    @model_validator(mode="after")
    def _local_steps_are_possible(self) -> Profile:
        every, delay = self.train.sync_every, self.train.sync_delay
        if every == "auto" and delay > 0:
            raise ValueError(
                f"train.sync_delay: {delay} has to be less than train.sync_every, which auto "
                "decides only when the ranks meet; set it to a number"
            )
        if every != "auto" and delay >= every:
            raise ValueError(
                f"train.sync_delay: {delay} has to be less than train.sync_every, {every}"
            )
        if every == 1:
            return self
        if self.device.sharding in ("shard", "hybrid"):
            raise ValueError(
                "train.sync_every: processes that take steps of their own need all weights, and a "
                "sharded model's have a part of them"
            )
        if self.lora.rank is not None:
            raise ValueError(
                "train.sync_every: adapters are small, and their gradients averaged in every step"
            )
        return self

    @property
    def exchange_timeout_s(self) -> float:
        """How long a rank waits in an exchange: a slower one may have a whole round before it."""
        every = self.train.chosen_sync_every
        return min(self.device.collective_timeout * every, _LONGEST_TIMEOUT_S)

    @property
    def exchange_timeout_name(self) -> str:
        """The settings that this follows from."""
        rounds = "train.sync_every × " if self.train.chosen_sync_every > 1 else ""
        return f"{rounds}device.collective_timeout"

    def values(self) -> dict[str, Any]:
        """Return nested plain values as in a profile file, without unset ones."""
        return self.model_dump(mode="json", exclude_none=True)


# At most one key of each group may be set; it replaces those of the group in lower layers.
EXCLUSIVE_GROUPS: tuple[tuple[str, ...], ...] = (
    ("train.steps", "train.tokens", "train.epochs", "train.time"),
    ("checkpoint.every_steps", "checkpoint.every_minutes"),
)
