"""How the saved state of a run (`SavedState`) changes during a session."""

from __future__ import annotations

import math
from dataclasses import asdict

from torch import Tensor

from llmtrain.machine.gpu_memory import read_accelerator_memory
from llmtrain.machine.memory_usage import read_process_memory
from llmtrain.model.lora import trained_weights
from llmtrain.plan.planner import Plan
from llmtrain.train.build import RandomState
from llmtrain.train.checkpoint.format import SavedState
from llmtrain.train.distributed.owned import owned_tensors
from llmtrain.train.distributed.sharding import is_sharded, local_part
from llmtrain.train.divergence.policy import DivergenceState
from llmtrain.train.events import Evaluated
from llmtrain.train.loop import Run
from llmtrain.train.pace import Pace
from llmtrain.train.parameter_groups import named_state


def current_state(state: SavedState, run: Run, pace: Pace) -> SavedState:
    """Return `state` as of the run's current step. Every rank has to call it."""
    return state.model_copy(
        update=asdict(run.position)
        | {
            "begun_s": pace.startup_s,
            "elapsed_s": pace.elapsed_s,
            "peak_memory_bytes": max(state.peak_memory_bytes, _peak_memory_bytes(run)),
            "torch_rng": RandomState.now().text,
            "course": run.divergence,
            "grad_scaler": run.scaler.state_dict() if run.scaler.is_enabled() else None,
        }
    )


def saved_tensors(run: Run) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights and the optimizer state that this rank saves.

    They are all, or of a sharded model those that it owns, in memory of their own; then every rank
    of its replica has to call it. With rounds of local steps they are the weights that it owns and
    its own state.
    """
    weights, optimizer = trained_weights(run.model), named_state(run.model, run.optimizer)
    if run.rounds is not None:
        with run.rounds.agreed():
            owned = run.rounds.owned(weights)
        return owned, run.rounds.state(optimizer)
    if run.sharded is None:
        return weights, optimizer
    replica = run.sharded.replica
    shapes = {name: p.shape for name, p in run.model.named_parameters() if is_sharded(p)}
    of_state = {
        name: shapes[parameter]
        for name, tensor in optimizer.items()
        if (parameter := name.rpartition(".")[0]) in shapes and tensor.dim() > 0
    }
    parts = {name: local_part(weight) for name, weight in weights.items()}
    return (
        owned_tensors(parts, shapes, replica),
        owned_tensors(optimizer, of_state, replica),
    )


def with_evaluation(state: SavedState, evaluated: Evaluated) -> SavedState:
    """Return `state` with the validation loss; None where it is not finite."""
    is_finite = math.isfinite(evaluated.val_loss)
    without_best = 0 if evaluated.is_best else state.evaluations_without_best + 1
    update: dict[str, object] = {
        "val_loss": evaluated.val_loss if is_finite else None,
        "val_bpb": evaluated.val_bpb if is_finite else None,
        "evaluations_without_best": without_best,
    }
    if evaluated.is_best:
        update |= {"best_val_loss": evaluated.val_loss, "best_step": evaluated.step}
    return state.model_copy(update=update)


def with_plan(state: SavedState, plan: Plan, changed_after: int) -> SavedState:
    """Return `state` with a plan that changed after a step, so that later bits differ."""
    drifted = state.not_bitwise_from_step
    if drifted is None and changed_after > 0:
        drifted = changed_after
    return state.model_copy(update={"numerics": plan.numerics(), "not_bitwise_from_step": drifted})


def rewound_state(state: SavedState, base: SavedState | None) -> SavedState:
    """Return the state of `base` (None: the beginning) with what stays true after a rewind."""
    if base is None:
        base = SavedState(
            step=0,
            tokens=0,
            windows=0,
            elapsed_s=state.elapsed_s,
            horizon_steps=None,
            torch_rng=state.torch_rng,
            course=DivergenceState(),
            numerics=state.numerics,
        )
    stays = ("numerics", "not_bitwise_from_step", "peak_memory_bytes")
    return base.model_copy(update=state.model_dump(include=set(stays)))


def _peak_memory_bytes(run: Run) -> int:
    """Return the peak of all ranks' processes together, or of the GPU that holds most."""
    if run.device.type == "cpu":
        return int(run.all_reduce([read_process_memory().peak_resident_bytes])[0])
    readings = read_accelerator_memory(run.device.index)
    own = sum(r.peak_reserved_bytes or r.reserved_bytes or 0 for r in readings)
    ranks = range(run.world.size)
    return int(max(run.all_reduce([own if rank == run.world.rank else 0 for rank in ranks])))
