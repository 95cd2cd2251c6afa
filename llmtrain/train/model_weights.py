"""A model with its weights: the first ones, those of a checkpoint, or of another model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from llmtrain.choice import Precision
from llmtrain.errors import LlmtrainError
from llmtrain.machine.allocator import return_free_memory
from llmtrain.model.decoder import Decoder
from llmtrain.model.huggingface import EMBEDDING, HEAD, weight_shapes
from llmtrain.model.lora import adapted_decoder, reset_adapters
from llmtrain.profile.schema import Profile
from llmtrain.profile.shape import ModelShape, shape_of
from llmtrain.train.checkpoint.adapter import Adapter
from llmtrain.train.checkpoint.format import Checkpoint
from llmtrain.train.distributed.replica import Replica
from llmtrain.train.distributed.sharding import (
    ShardedModel,
    is_sharded,
    local_part,
    part_of,
)
from llmtrain.train.loop import ReadWeights


def build_model(
    profile: Profile, resumed: Checkpoint | None, initial: ReadWeights | None = None
) -> Decoder:
    """Return the profile's model on the CPU, with the weights of a checkpoint or the first ones."""
    model = Decoder(shape_of(profile.model))
    set_weights(model, profile.train.seed, resumed, initial)
    return model


def build_sharded_model(
    profile: Profile, precision: Precision, replica: Replica, device: torch.device
) -> tuple[Decoder, ShardedModel]:
    """Return the profile's model, of which this rank has its part; its weights are not set.

    `replica`: the ranks that have the others.
    """
    with torch.device("meta"):
        model = Decoder(shape_of(profile.model))
    sharded = ShardedModel(model, replica, precision, device.type)
    model.to_empty(device=device)
    model.model.set_rotations(device)
    return model, sharded


def set_weights(
    model: Decoder, seed: int, resumed: Checkpoint | None, initial: ReadWeights | None
) -> None:
    """Set the weights of a checkpoint, or the first ones. Raises LlmtrainError."""
    if resumed is None:
        initialise(model, seed, initial)
    else:
        load_weights(model, resumed.weights)


def build_adapted_model(
    profile: Profile, adapter: Adapter, precision: Precision, resumed: Checkpoint | None
) -> Decoder:
    """Return the model that adapters are beside, with those of a checkpoint or new ones.

    Where products are in bf16, the weights that stay as they are are kept in bf16: they would be
    rounded to it in every step. Raises LlmtrainError if the model is gone or has changed.
    """
    shape = shape_of(profile.model)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    tensors = adapter.base.tensors(shape.vocab_size)
    model = adapted_decoder(shape, tensors, adapter.lora, dtype)
    return_free_memory()  # what tensors were converted in
    if resumed is None:
        reset_adapters(model, profile.train.seed)
    else:
        load_weights(model, resumed.weights)
    return model


def initialise(model: Decoder, seed: int, initial: ReadWeights | None) -> None:
    """Set the weights of step 0: random ones, or those of another model with rows added.

    Of a sharded model each rank sets its part.
    """
    if initial is None:
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, drawn in model.drawn_weights(seed):  # one at a time: there may be many
                local_part(parameters[name]).copy_(part_of(drawn, parameters[name]))
        return
    weights = with_vocabulary(initial(), model.shape.vocab_size)
    _require_finite(weights, "the model to continue from")
    load_weights(model, weights)


def with_vocabulary(weights: Mapping[str, Tensor], rows: int) -> dict[str, Tensor]:
    """Return the weights with `rows` embedding rows, and as many of the head if it has its own.

    A row that is added is the mean of the others, so that no token starts likelier than an average
    one (Hewitt 2021, "Initializing new word embeddings for pretrained language models").
    """
    extended = dict(weights)
    for name in (EMBEDDING, HEAD):
        matrix = extended.get(name)
        if matrix is not None and len(matrix) < rows:
            mean = matrix.mean(dim=0, keepdim=True)
            extended[name] = torch.cat([matrix, mean.expand(rows - len(matrix), -1)])
    return extended


def trained_model(shape: ModelShape, weights: Mapping[str, Tensor], origin: str) -> Decoder:
    """Return the model of a shape and its weights, on the CPU.

    Raises LlmtrainError if the weights do not match config.json, before memory is allocated for a
    model of that shape, and if one is not a finite number.
    """
    if sum(tensor.numel() for tensor in weights.values()) != shape.parameters or any(
        name not in weights or weights[name].shape != dims for name, dims in weight_shapes(shape)
    ):
        raise LlmtrainError(
            f"the weights do not match config.json, which describes {shape.parameters} parameters"
        )
    _require_finite(weights, origin)
    model = Decoder(shape)
    load_weights(model, weights)
    return model


def _require_finite(weights: Mapping[str, Tensor], origin: str) -> None:
    broken = next((name for name, w in weights.items() if not torch.isfinite(w).all()), None)
    if broken is not None:
        raise LlmtrainError(
            f"the weights of {origin} cannot be used: {broken} holds numbers that are not finite",
            hint="name an earlier checkpoint, or train again at a lower learning rate",
        )


def load_weights(model: Decoder, weights: Mapping[str, Tensor]) -> None:
    """Load what is trained of the model. Raises LlmtrainError if it does not fit.

    Of a sharded model each rank loads its part.
    """
    if any(is_sharded(parameter) for parameter in model.parameters()):
        _load_parts(model, weights)
        return
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    try:
        missing, unexpected = model.load_state_dict(dict(weights), strict=False)
    except RuntimeError as error:
        raise LlmtrainError(f"the weights do not fit the model: {error}") from None
    if wrong := [*unexpected, *trained.intersection(missing)]:
        raise LlmtrainError(f"the weights do not fit the model: {min(wrong)}")


@torch.no_grad()
def _load_parts(model: Decoder, weights: Mapping[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    if wrong := parameters.keys() ^ weights.keys():
        raise LlmtrainError(f"the weights do not fit the model: {min(wrong)}")
    for name, parameter in parameters.items():
        if weights[name].shape != parameter.shape:
            raise LlmtrainError(
                f"the weights do not fit the model: {name} has shape {list(weights[name].shape)}, "
                f"not {list(parameter.shape)}"
            )
        local_part(parameter).copy_(part_of(weights[name], parameter))
