"""The model that a run continues (`model.init_from`): what it sets in the profile, and its weights.

Its shape and its tokenizer replace those of the profile; everything else is the profile's. The run
records where they are from and the hashes of the files. A resumed run has its own checkpoints, and
reads the files again only if it is rewound to its beginning.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from llmtrain.engine.open_model import model_directory
from llmtrain.errors import LlmtrainError, UsageError
from llmtrain.prepare.tokenizer import cached_tokenizer
from llmtrain.profile.load import LoadedProfile, flat_values, validate_profile
from llmtrain.profile.lora_shape import lora_shape_of
from llmtrain.profile.schema import LoraSection
from llmtrain.profile.setting import INIT_FROM, Setting, layer_of
from llmtrain.profile.shape import ModelShape
from llmtrain.tokenizer.chat_template import with_chat_template
from llmtrain.tokenizer.of_model import tokenizer_of_model
from llmtrain.train.checkpoint.adapter import ADAPTER, Adapter, BaseModel
from llmtrain.train.checkpoint.format import newest_good
from llmtrain.train.checkpoint.integrity import verify_checkpoint
from llmtrain.train.checkpoint.pretrained import open_pretrained
from llmtrain.train.run_directory.find import find_checkpoints

_SHAPE_KEYS = (
    *("hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "head_dim"),
    *("rope_theta", "norm_epsilon", "qk_norm", "tie_embeddings"),
)


@dataclass(frozen=True, slots=True)
class InitialModel:
    """Where the weights of step 0 are from, as run.yaml records it."""

    spec: str  # as the profile names it
    path: Path  # the directory that was read
    sha256: dict[str, str]  # of config.json and the files with weights
    parameters: int  # of the model there
    vocab_size: int  # embedding rows there

    def document(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self) | {"path": str(self.path)}

    def adapter(self, section: LoraSection) -> Adapter | None:
        """Return what is trained beside this model; None where all of it is trained."""
        lora = lora_shape_of(section)
        return None if lora is None else Adapter(lora, BaseModel(self.path, self.sha256))

    def read_weights(self) -> Mapping[str, Tensor]:
        """Return the weights. Raises LlmtrainError if they are missing or have changed."""
        directory = open_pretrained(self.path)
        changed = [
            name for name, digest in directory.sha256().items() if self.sha256.get(name) != digest
        ]
        if changed:
            raise LlmtrainError(
                f"{self.path / changed[0]} has changed since the run began to continue from it",
                hint="start a new run with another --out",
            )
        return directory.read_weights()


@dataclass(frozen=True, slots=True)
class Continued:
    """A profile with the settings of the model that it continues, and notes for the user."""

    loaded: LoadedProfile
    model: InitialModel
    notes: tuple[str, ...]


def recorded_initial_model(values: Mapping[str, Any]) -> InitialModel | None:
    """Return what run.yaml records; None for a run that began with random weights."""
    found = values.get("init_from")
    if found is None:
        return None
    return InitialModel(**{**found, "path": Path(found["path"])})


def continue_from(spec: str, loaded: LoadedProfile) -> Continued:
    """Return the profile for continuing the model that `spec` names.

    Reads no weights, but the tokenizer, which is kept in the cache. Raises UsageError for an
    unknown or unsupported model and for settings that contradict it, DataError for its tokenizer,
    and LlmtrainError where it is damaged.
    """
    notes: list[str] = []
    path = directory_of_model(spec, notes)
    if (path / ADAPTER).is_file():
        raise UsageError(
            f"{spec} has adapters, and no whole model to continue",
            hint=f"llmtrain export {shlex.quote(spec)} --format hf --out DIR makes one of it",
        )
    directory = open_pretrained(path)
    tokenizer, warnings = tokenizer_of_model(directory.path)
    notes += warnings
    if loaded.profile.data.has_conversations:
        tokenizer = with_chat_template(tokenizer)
    cached = cached_tokenizer(tokenizer, {"model": str(directory.path)})
    profile = loaded.profile
    rows = max(directory.shape.vocab_size, tokenizer.vocab_size + profile.data.tokenizer_reserve)
    if rows > directory.shape.vocab_size:
        notes.append(f"the vocabulary grows from {directory.shape.vocab_size} to {rows} rows")
    settings = {
        **{f"model.{key}": getattr(directory.shape, key) for key in _SHAPE_KEYS},
        "model.vocab_size": rows,
        "model.context": _context(loaded, directory.shape, spec),
        "data.tokenizer": str(cached),
    }
    model = InitialModel(
        spec,
        directory.path.resolve(),
        directory.sha256(),
        directory.shape.parameters,
        directory.shape.vocab_size,
    )
    return Continued(_with_settings(loaded, settings, spec), model, tuple(notes))


def directory_of_model(spec: str, notes: list[str]) -> Path:
    """Return the model directory, or the newest intact checkpoint, that `spec` names."""
    directory = model_directory(spec)
    if directory is not None:
        return directory
    checkpoints = find_checkpoints(spec)
    if len(checkpoints) == 1:
        verify_checkpoint(checkpoints[0], with_optimizer=False)
        return checkpoints[0]
    found = newest_good(
        checkpoints[0].parent, lambda path, problem: notes.append(f"damaged checkpoint: {problem}")
    )
    assert found is not None, "there are checkpoints"
    return found


def _context(loaded: LoadedProfile, shape: ModelShape, spec: str) -> int:
    """Return the profile's context, which may be shorter than the model's; never a longer one."""
    wanted = loaded.profile.model.context
    if wanted <= shape.context:
        return wanted
    if layer_of(loaded.origin_of("model.context")) > 1:
        raise UsageError(
            f"model.context is {wanted} ({loaded.origin_of('model.context')}), and {spec} was "
            f"trained on at most {shape.context} tokens",
            hint=f"--set model.context={shape.context}",
        )
    return shape.context


def _with_settings(loaded: LoadedProfile, settings: Mapping[str, Any], spec: str) -> LoadedProfile:
    """Return the profile with the model's settings. Raises UsageError for contradictions."""
    values = dict(flat_values(loaded.profile.model_dump(mode="json")))
    for path, value in settings.items():
        given, by = values[path], loaded.origin_of(path)
        is_asked_for = layer_of(by) > 1 and not by.startswith(INIT_FROM)
        if is_asked_for and given != value:
            raise UsageError(
                f"{path} is {given!r} ({by}), and {value!r} in {spec}, which the run continues",
                hint=f"leave {path} out",
            )
    before = {
        path: Setting(values[path], o) for path, o in loaded.origins.items() if path in values
    }
    origin = INIT_FROM + spec
    return validate_profile(before | {path: Setting(v, origin) for path, v in settings.items()})
