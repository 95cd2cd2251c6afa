"""Set the weights of a model: random ones, those of another model, or those of a checkpoint.

The model may be sharded: each rank then takes its part of every tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from llmtrain.errors import LlmtrainError
from llmtrain.model.decoder import Decoder
from llmtrain.model.huggingface import EMBEDDING, HEAD
from llmtrain.train.distributed.sharding import is_sharded, local_part, part_of

ReadWeights = Callable[[], Mapping[str, Tensor]]


@torch.no_grad()
def initialise_weights(model: Decoder, seed: int, initial: ReadWeights | None) -> None:
    """Set the weights of step 0: random ones, or those of another model with rows added.

    Raises LlmtrainError if those are not finite or do not fit.
    """
    if initial is None:
        parameters = dict(model.named_parameters())
        for name, drawn in model.drawn_weights(seed):  # one at a time: the model may be large
            local_part(parameters[name]).copy_(part_of(drawn, parameters[name]))
        return
    weights = with_vocabulary(initial(), model.shape.vocab_size)
    require_finite(weights, "the model to continue from")
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


def require_finite(weights: Mapping[str, Tensor], origin: str) -> None:
    """Raise LlmtrainError if a number of the weights is not finite."""
    broken = next((name for name, w in weights.items() if not torch.isfinite(w).all()), None)
    if broken is not None:
        raise LlmtrainError(
            f"the weights of {origin} are of no use: {broken} holds numbers that are not finite",
            hint="name an earlier checkpoint, or train again at a lower learning rate",
        )


def load_weights(model: Decoder, weights: Mapping[str, Tensor]) -> None:
    """Load what is trained of the model. Raises LlmtrainError if it does not fit."""
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
