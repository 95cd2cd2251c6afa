"""What a profile may say. Frozen, closed, and without a default that depends on the machine.

`auto` means that the plan decides, with a reason; the decision lives in the plan and is never
written back here.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    Tag,
    model_validator,
)
from pydantic.json_schema import WithJsonSchema

from llmtrain.units import parse_count, parse_duration_s

Auto = Literal["auto"]
Duplicates = Literal["keep", "drop_exact", "drop_near"]


def _duration_s(value: object) -> object:
    if isinstance(value, str):
        return parse_duration_s(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        raise ValueError(f"{value} has no unit; write {value:g}s or {value:g}m")
    return value


def _count(value: object) -> object:
    return parse_count(value) if isinstance(value, str) else value


def _seconds_text(seconds: float) -> str:
    return f"{Decimal(repr(seconds)).normalize():f}s"  # exact, and never with an exponent


Duration = Annotated[
    float,
    BeforeValidator(_duration_s),
    PlainSerializer(_seconds_text, return_type=str),
    WithJsonSchema({"type": "string", "description": "90s, 30m, 2h or 1h30m"}),
]
Count = Annotated[
    int,
    BeforeValidator(_count),
    WithJsonSchema({"anyOf": [{"type": "integer"}, {"type": "string"}], "description": "50M"}),
]
PositiveInt = Annotated[int, Field(ge=1, lt=2**31)]
PositiveCount = Annotated[Count, Field(ge=1, lt=2**63)]
# The bound keeps such a value, and its products with others, within float32.
PositiveFloat = Annotated[float, Field(gt=0, lt=1e30)]
MOST_THREADS = 4096  # a system gives out more only to those who ask for trouble
Threads = Annotated[int, Field(ge=1, le=MOST_THREADS)]
LanguageCode = Annotated[str, Field(pattern=r"^[a-z]{2,3}$")]  # ISO 639


class Section(BaseModel):
    """A part of a profile: values cannot change, unknown keys are errors, types are strict."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ModelSection(Section):
    """The decoder's shape, in the Qwen3 form (without `qk_norm`: Llama)."""

    vocab_size: Annotated[int, Field(ge=300, lt=2**31)] = 32000
    hidden_size: PositiveInt = 384
    intermediate_size: PositiveInt = 1024
    num_layers: PositiveInt = 8
    num_heads: PositiveInt = 6
    num_kv_heads: PositiveInt | Auto = "auto"  # num_heads
    head_dim: PositiveInt | Auto = "auto"  # hidden_size / num_heads
    context: Annotated[int, Field(ge=8, lt=2**31)] = 512
    rope_theta: PositiveFloat = 10000.0
    norm_epsilon: PositiveFloat = 1e-6
    qk_norm: bool = True
    tie_embeddings: bool = True

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
            raise ValueError(f"head_dim {head_dim} is odd; rotary embeddings turn pairs")
        return self


class SourceSection(Section):
    """A source with the share of the training tokens that is drawn from it: weight / all weights.

    Whatever its size: where that is more than it has, it is read again, in another order.
    """

    spec: Annotated[str, Field(min_length=1)]
    weight: PositiveFloat | None = None  # shares as sizes are


def _source_form(value: object) -> str:
    return "mapping" if isinstance(value, (dict, SourceSection)) else "text"


Source = Annotated[
    Annotated[str, Tag("text")] | Annotated[SourceSection, Tag("mapping")],
    Discriminator(_source_form),
]


class FiltersSection(Section):
    """Which documents are left out for what they are; all that is not set lets all pass."""

    min_bytes: PositiveInt | None = None
    max_bytes: Annotated[int, Field(ge=1, lt=2**25)] | None = None  # longer texts come in parts
    languages: Annotated[tuple[LanguageCode, ...], Field(min_length=1)] | None = None
    max_repetition: Annotated[float, Field(ge=0, lt=1)] | None = None  # Gopher's are 0.16 to 0.3

    @model_validator(mode="after")
    def _some_length_passes(self) -> FiltersSection:
        least, most = self.min_bytes, self.max_bytes
        if least is not None and most is not None and least > most:
            raise ValueError(f"min_bytes {least} is above max_bytes {most}: nothing would be left")
        return self


class DataSection(Section):
    """Training data and its preparation."""

    sources: Annotated[tuple[Source, ...], Field(min_length=1)] = ("builtin:python",)
    include: tuple[str, ...] = ()  # patterns as in .gitignore, of what is found; none: all
    exclude: tuple[str, ...] = ()
    text_field: Annotated[str, Field(min_length=1)] = "text"
    on_error: Literal["stop", "skip"] = "stop"  # at a record that cannot be used
    validation: Annotated[str, Field(min_length=1)] | None = None  # a source; all of it is held out
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.02
    mask_documents: bool = False  # attention within documents, though windows hold several
    packing: Literal["concatenate", "best_fit"] = "concatenate"  # of documents into windows
    tokenizer: Annotated[str, Field(min_length=1)] = "auto"  # or a tokenizer's directory or file
    tokenizer_kind: Literal["bpe", "unigram"] = "bpe"  # what `auto` trains
    duplicates: Duplicates = "keep"  # of equal or similar documents the first always stays
    filters: FiltersSection = FiltersSection()

    @property
    def specs(self) -> tuple[str, ...]:
        """The sources without their weights."""
        return tuple(s.spec if isinstance(s, SourceSection) else s for s in self.sources)

    @property
    def weights(self) -> tuple[float, ...] | None:
        """One a source; None where text is read in proportion to its size."""
        found = [s.weight for s in self.sources if isinstance(s, SourceSection)]
        given = tuple(weight for weight in found if weight is not None)
        return given or None

    @model_validator(mode="after")
    def _all_have_weights_or_none(self) -> DataSection:
        if self.weights is not None and len(self.weights) < len(self.sources):
            raise ValueError("some sources have a weight and others none; give one to each")
        return self


class TrainSection(Section):
    """How much is learned at once, and for how long: one of steps, tokens, epochs or time."""

    tokens_per_step: PositiveCount | Auto = "auto"  # by how much is trained on in all
    steps: PositiveCount | None = None
    tokens: PositiveCount | None = None
    epochs: Annotated[float, Field(gt=0, lt=1e6)] | None = None
    time: Annotated[Duration, Field(gt=0, lt=1e9)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    micro_batch: PositiveInt | Auto = "auto"  # sequences of one forward and backward
    gradient_clip: PositiveFloat | None = 1.0  # global norm
    skip_loss_spikes: bool = True  # no update from a loss that leaps above the recent ones
    log_every_steps: PositiveInt = 10

    @property
    def chosen_tokens_per_step(self) -> int:
        """The number, once it is one. Raises ValueError where it is still to be chosen."""
        if self.tokens_per_step == "auto":
            raise ValueError("train.tokens_per_step is still to be chosen")
        return self.tokens_per_step


class OptimSection(Section):
    """Muon (Jordan et al. 2024) for hidden matrices and AdamW (Loshchilov and Hutter 2019) for the
    rest, or AdamW for all; one learning rate a parameter role."""

    name: Literal["muon", "adamw"] = "muon"
    learning_rate: PositiveFloat | Auto = "auto"  # hidden matrices; with adamw gains too
    embedding_learning_rate: PositiveFloat | Auto = "auto"  # with muon gains too
    head_learning_rate: PositiveFloat | Auto = "auto"  # the embedding's; only where untied
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9  # of muon
    weight_decay: Annotated[float, Field(ge=0, lt=1e30)] = 0.1  # hidden matrices only
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    epsilon: PositiveFloat = 1e-8
    schedule: Literal["wsd", "cosine", "linear"] = "wsd"
    warmup_steps: Annotated[int, Field(ge=0, lt=2**31)] = 50
    decay_fraction: Annotated[float, Field(ge=0, le=1)] = 0.5  # of the horizon; wsd only
    final_learning_rate_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0


class EvalSection(Section):
    """Reporting and tracking of the run."""

    every_steps: PositiveInt = 250
    tokens: PositiveCount = 65536  # of validation text, the same ones every time
    patience: PositiveInt | None = None  # evaluations without a new best before stopping early
    sample_every_steps: PositiveInt | None = 500
    sample_tokens: PositiveInt = 64
    # auto: "def" and "import" for the built-in Python, else the first words of the validation text.
    prompts: tuple[str, ...] | Auto = "auto"


class CheckpointSection(Section):
    """When the run is saved: every so many steps or minutes, and always at the end."""

    every_steps: PositiveInt | None = None
    every_minutes: PositiveFloat | None = None
    keep_last: PositiveInt = 2
    keep_best: bool = True


class DeviceSection(Section):
    """Options for the machine; the plan decides those that are `auto`."""

    kind: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    force_cpu: bool = False
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    threads: Threads | Auto = "auto"  # of one process
    attention: Literal["auto", "sdpa", "blocks", "flex"] = "auto"
    activation_checkpointing: Literal["auto", "off", "selective", "full"] = "auto"
    compile: bool | Auto = "auto"
    workers: Threads | Auto = "auto"  # processes that tokenize
    pin_memory: bool | Auto = "auto"
    backend: Literal["auto", "gloo", "nccl"] = "auto"
    processes: Threads | Auto = "auto"
    # How long ranks wait for one that does not answer.
    collective_timeout: Annotated[Duration, Field(ge=1, lt=1e6)] = 600.0


class Profile(Section):
    """All settings of a run. What depends on the machine is in the plan."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] = "custom"
    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    train: TrainSection = TrainSection()
    optim: OptimSection = OptimSection()
    eval: EvalSection = EvalSection()
    checkpoint: CheckpointSection = CheckpointSection()
    device: DeviceSection = DeviceSection()

    def values(self) -> dict[str, Any]:
        """Nested plain values as a profile file would hold them; unset ones are left out."""
        return self.model_dump(mode="json", exclude_none=True)


# Of each group one may be set; the highest layer that sets one wins over all below.
EXCLUSIVE_GROUPS: tuple[tuple[str, ...], ...] = (
    ("train.steps", "train.tokens", "train.epochs", "train.time"),
    ("checkpoint.every_steps", "checkpoint.every_minutes"),
)
