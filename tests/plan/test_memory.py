"""The prediction is that of the tensors which training really holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llmtrain.choice import (
    ActivationCheckpointing,
    AttentionKernel,
    BlockKernels,
    Choice,
    Precision,
)
from llmtrain.engine.plan_run import plan_run
from llmtrain.model.decoder import Decoder
from llmtrain.ops.chunk_sizes import loss_chunk_tokens
from llmtrain.ops.precision import WeightCasts, autocast_as
from llmtrain.plan.memory import MemoryPrediction, predict_training
from llmtrain.plan.planner import predict
from llmtrain.plan.tensor_bytes import (
    TrainingSetup,
    block_bytes_per_token,
    loss_bytes,
    mask_bytes,
    saved_bytes_per_token,
)
from llmtrain.plan.workload import Workload
from llmtrain.profile.load import load_profile
from llmtrain.profile.schema import ModelSection, OptimSection
from llmtrain.profile.shape import ModelShape, shape_of
from llmtrain.train.parameter_groups import build_optimizer

SEQUENCES, CONTEXT = 3, 40  # 120 rows, which no weight has


def shape(**changes: Any) -> ModelShape:
    small = {
        "vocab_size": 320,
        "hidden_size": 96,
        "intermediate_size": 224,
        "num_layers": 2,
        "num_heads": 6,
        "head_dim": 24,
        "context": CONTEXT,
    }
    return shape_of(ModelSection.model_validate(small | changes))


def bytes_saved_for_backward(model: Decoder, precision: Precision) -> int:
    """Bytes of all storages that autograd keeps after one forward, weights and their casts not."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    matrices = {tuple(p.shape) for p in model.parameters() if p.dim() == 2}
    weights = matrices | {sizes[::-1] for sizes in matrices}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        where = tensor.untyped_storage().data_ptr()
        if where not in own and tuple(tensor.shape) not in weights:
            kept[where] = tensor  # held, so that no other tensor gets its place
        return tensor

    tokens = torch.randint(0, 320, (SEQUENCES, CONTEXT), generator=torch.Generator().manual_seed(0))
    saving = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with saving, autocast_as(precision, torch.device("cpu")):
        model(tokens, tokens)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("kv_heads", [6, 2, 1])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_autograd_saves_is_what_is_predicted(
    precision: Precision, kv_heads: int, qk_norm: bool, tied: bool
) -> None:
    form = shape(num_kv_heads=kv_heads, qk_norm=qk_norm, tie_embeddings=tied)
    model = Decoder(form)
    model.initialise(0)
    saved = bytes_saved_for_backward(model, precision)
    tokens = SEQUENCES * CONTEXT
    predicted = tokens * saved_bytes_per_token(form, TrainingSetup(1, precision != "fp32", "cpu"))
    # The loss holds the final hidden states, which autograd does not save; token ids are noise.
    hidden = tokens * form.hidden_size * (4 if precision == "fp32" else 2)
    assert saved + hidden == pytest.approx(predicted, rel=0.01)


@pytest.mark.parametrize("layers", [1, 2, 5])
class LiveStorages(TorchDispatchMode):
    """Every storage that an operator made in it and that somebody still holds."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, tuple[StorageWeakRef, torch.Size, int]] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for made in tree_leaves(out):
            if isinstance(made, Tensor):
                storage = made.untyped_storage()
                seen = self._made.get(storage._cdata)
                if seen is None or seen[0].expired():
                    noted = (StorageWeakRef(storage), made.shape, storage.nbytes())
                    self._made[storage._cdata] = noted
        return out

    def total_bytes(self, model: Decoder) -> int:
        """Their bytes; what has the shape of a weight is its cast or its gradient, and not here."""
        matrices = {tuple(p.shape) for p in model.parameters() if p.dim() == 2}
        return sum(
            nbytes
            for storage, sizes, nbytes in self._made.values()
            if not storage.expired() and not {tuple(sizes), tuple(sizes)[::-1]} & matrices
        )


def live_bytes(
    form: ModelShape,
    precision: Precision,
    kernel: AttentionKernel,
    checkpointing: ActivationCheckpointing,
    separator_id: int | None = None,
    block_kernels: BlockKernels = "torch",
) -> int:
    """What a forward leaves for the backward, by the storages that are alive."""
    model = Decoder(form)
    model.initialise(0)
    model.separator_id = separator_id
    casts = WeightCasts(torch.bfloat16) if block_kernels == "native" else None  # as in a run
    model.compute_with(
        attention=kernel, block_kernels=block_kernels, checkpointing=checkpointing, casts=casts
    )
    tokens = torch.zeros((SEQUENCES, CONTEXT), dtype=torch.long)
    with LiveStorages() as storages, autocast_as(precision, torch.device("cpu")):
        loss = model(tokens, tokens)
    assert loss.requires_grad  # so the graph still is
    return storages.total_bytes(model)


@pytest.mark.usefixtures("native_kernels")
@pytest.mark.parametrize("checkpointing", ["off", "selective", "full"])
def test_native_attention_keeps_no_more_than_is_predicted(
    checkpointing: ActivationCheckpointing,
) -> None:
    two, five = (shape(num_layers=n) for n in (2, 5))
    how = TrainingSetup(1, True, "cpu", checkpointing=checkpointing)
    predicted = saved_bytes_per_token(five, how) - saved_bytes_per_token(two, how)
    found = live_bytes(five, "bf16", "native", checkpointing) - live_bytes(
        two, "bf16", "native", checkpointing
    )
    beyond = {  # its output is the one that the projection keeps; selective: the normaliser
        "off": -2 * two.attention_width,
        "selective": 4 * two.num_heads,
        "full": 0,
    }[checkpointing]
    assert found == SEQUENCES * CONTEXT * (predicted + 3 * beyond)


@pytest.mark.usefixtures("native_kernels")
@pytest.mark.parametrize("checkpointing", ["off", "selective", "full"])
def test_native_blocks_keep_what_is_predicted(checkpointing: ActivationCheckpointing) -> None:
    two, five = (shape(num_layers=n, head_dim=32) for n in (2, 5))
    how = TrainingSetup(1, True, "cpu", checkpointing=checkpointing, native_block=True)
    predicted = saved_bytes_per_token(five, how) - saved_bytes_per_token(two, how)
    found = live_bytes(five, "bf16", "native", checkpointing, None, "native") - live_bytes(
        two, "bf16", "native", checkpointing, None, "native"
    )
    joined = 2 * two.hidden_size * (two.attention_width + 2 * two.kv_width)  # a layer's weights
    unused = -SEQUENCES * CONTEXT % 128 if checkpointing == "off" else 0  # tokens of whole blocks
    gates = 2 * 2 * two.intermediate_size
    assert found == SEQUENCES * CONTEXT * predicted + 3 * (joined + unused * gates)


@pytest.mark.parametrize("kv_heads", [6, 2])
@pytest.mark.parametrize("checkpointing", ["off", "selective", "full"])
@pytest.mark.parametrize("kernel", ["sdpa", "blocks"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_lives_between_forward_and_backward_is_what_is_predicted(
    precision: Precision,
    kernel: AttentionKernel,
    checkpointing: ActivationCheckpointing,
    kv_heads: int,
) -> None:
    """Of one block. Selective checkpointing keeps what autograd does not save: so what is alive."""
    two, five = (shape(num_kv_heads=kv_heads, num_layers=n) for n in (2, 5))
    half, size = precision != "fp32", 4 if precision == "fp32" else 2
    how = TrainingSetup(1, half, "cpu", checkpointing=checkpointing)
    predicted = saved_bytes_per_token(five, how) - saved_bytes_per_token(two, how)
    found = live_bytes(five, precision, kernel, checkpointing) - live_bytes(
        two, precision, kernel, checkpointing
    )
    beyond = {  # torch's kernel is what is predicted; it keeps a normaliser and its own output
        ("off", "sdpa"): 0,
        ("off", "blocks"): -size * two.attention_width - 4 * two.num_heads,
        ("selective", "sdpa"): 4 * two.num_heads,
    }.get((checkpointing, kernel), 0)
    assert found == SEQUENCES * CONTEXT * (predicted + 3 * beyond)


@pytest.mark.parametrize("kernel", ["sdpa", "blocks"])
@pytest.mark.parametrize("checkpointing", ["off", "selective", "full"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_mask_is_held_once_for_all_layers(
    precision: Precision, checkpointing: ActivationCheckpointing, kernel: AttentionKernel
) -> None:
    """Blocks of rows hold for each token one number instead, which is noise."""
    without, masked = (
        live_bytes(shape(num_layers=3), precision, kernel, checkpointing, separator_id)
        for separator_id in (None, 5)
    )
    workload = Workload(shape(), SEQUENCES * CONTEXT, mask_documents=True)
    masks_pairs = workload.masks_pairs(kernel)
    assert masks_pairs == (kernel == "sdpa")
    how = TrainingSetup(SEQUENCES, precision != "fp32", "cpu", masks_pairs=masks_pairs)
    noise = 0 if masks_pairs else 4 * SEQUENCES * CONTEXT
    assert masked - without == mask_bytes(shape(), how) + noise


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_a_mask_is_predicted(kind: str) -> None:
    how = TrainingSetup(8, True, kind, checkpointing="full")
    without, masked = (
        predict_training(shape(context=2048), replace(how, masks_pairs=m)) for m in (False, True)
    )
    assert masked.activations_bytes - without.activations_bytes == 8 * 2048**2 * 2


def test_a_gpus_masked_kernel_repeats_grouped_keys() -> None:
    """Two key heads for six query heads: keys and values of 144 features instead of 48."""
    form = shape(num_kv_heads=2)
    for kind, more in (("cuda", 2 * 2 * (144 - 48)), ("cpu", 0)):
        how = TrainingSetup(1, True, kind)
        without, masked = (
            block_bytes_per_token(form, replace(how, masks_pairs=m)) for m in (False, True)
        )
        assert masked - without == more


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_more_recomputation_leaves_less(precision: Precision) -> None:
    off, selective, full = (
        live_bytes(shape(), precision, "blocks", mode) for mode in ("off", "selective", "full")
    )
    assert off > 1.5 * selective
    assert selective > 3 * full


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_every_layer_costs_the_same(layers: int) -> None:
    how = TrainingSetup(1, True, "cpu")
    one, none = (saved_bytes_per_token(shape(num_layers=n), how) for n in (2, 1))
    expected = none + (layers - 1) * (one - none)
    assert saved_bytes_per_token(shape(num_layers=layers), how) == expected


@pytest.mark.parametrize("name", ["muon", "adamw"])
@pytest.mark.parametrize("tied", [True, False])
def test_weights_gradients_and_moments_are_counted_exactly(
    tied: bool, name: Literal["muon", "adamw"]
) -> None:
    form = shape(tie_embeddings=tied)
    model = Decoder(form)
    model.initialise(0)
    optimizer = build_optimizer(model, OptimSection(name=name), tokens_per_step=8192)
    tokens = torch.zeros((1, CONTEXT), dtype=torch.long)
    model(tokens, tokens).backward()
    optimizer.step()
    found = predict_training(form, TrainingSetup(1, False, "cpu", accumulates=True, optimizer=name))
    parameters = list(model.parameters())
    assert found.parameters_bytes == sum(p.nbytes for p in parameters)
    assert found.gradients_bytes == sum(p.grad.nbytes for p in parameters if p.grad is not None)
    moments = [t for s in optimizer.state.values() for k, t in s.items() if k != "step"]
    assert found.optimizer_bytes == sum(t.nbytes for t in moments)


def test_casts_are_those_of_the_matrices_in_blocks() -> None:
    form = shape()
    model = Decoder(form)
    matrices = [p for n, p in model.named_parameters() if "layers" in n and p.dim() == 2]
    half, full = (
        predict_training(form, TrainingSetup(9, is_half, "cpu")) for is_half in (True, False)
    )
    assert half.weight_casts_bytes == sum(p.nbytes // 2 for p in matrices)
    assert full.weight_casts_bytes == 0


def test_only_several_processes_communicate() -> None:
    one, two = (
        predict_training(shape(), TrainingSetup(1, True, "cuda", processes=n)) for n in (1, 2)
    )
    assert one.communication_bytes == 0
    assert two.communication_bytes == two.gradients_bytes
    assert two.total_bytes - one.total_bytes == pytest.approx(two.communication_bytes, rel=0.02)


def test_the_total_is_the_sum_of_the_parts() -> None:
    prediction = MemoryPrediction(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
    assert prediction.total_bytes == 2047
    *parts, total = prediction.items().items()
    assert total == ("total_bytes", sum(value for _, value in parts))


@given(
    micro_batch=st.integers(1, 500),
    half=st.booleans(),
    compiled=st.booleans(),
    kind=st.sampled_from(["cpu", "mps", "cuda"]),
    vocab_size=st.integers(300, 200_000),
    optimizer=st.sampled_from(["muon", "adamw"]),
    processes=st.integers(1, 3),
)
@example(
    micro_batch=6,
    half=False,
    compiled=False,
    kind="cpu",
    vocab_size=104_858,
    optimizer="muon",
    processes=1,
)
def test_more_sequences_take_no_less_but_for_the_logits(
    micro_batch: int,
    half: bool,
    compiled: bool,
    kind: str,
    vocab_size: int,
    optimizer: Literal["muon", "adamw"],
    processes: int,
) -> None:
    form = replace(shape(), vocab_size=vocab_size)
    how = TrainingSetup(
        micro_batch,
        half,
        kind,
        compiled=compiled,
        checkpointing="selective" if compiled else "off",
        optimizer=optimizer,
        processes=processes,
    )
    one_more = replace(how, micro_batch=1 + micro_batch)
    less, more = (predict_training(form, each) for each in (how, one_more))
    # Cut in equal chunks, one sequence more can mean smaller chunks of logits, and the slack is a
    # share of all.
    smaller = max(0, loss_bytes(form, how) - loss_bytes(form, one_more))
    assert less.total_bytes <= more.total_bytes + 2 * smaller
    much = predict_training(form, replace(how, micro_batch=100 * micro_batch + 10_000))
    assert less.total_bytes < much.total_bytes


def test_the_moment_that_takes_most_is_the_peak() -> None:
    """Few tokens: the update; many pieces: the loss; much that is computed again: the backward."""
    form = shape(hidden_size=512, intermediate_size=1408, num_layers=6)
    update = predict_training(form, TrainingSetup(1, True, "cpu", optimizer="muon"))
    assert update.gradients_bytes == 4 * form.parameters
    assert (update.activations_bytes, update.loss_bytes) == (0, 0)
    assert update.working_bytes > 0

    wide = replace(shape(), vocab_size=100_000)
    loss = predict_training(wide, TrainingSetup(8, True, "cpu"))
    assert loss.loss_bytes > loss.activations_bytes > 0
    assert (loss.working_bytes, loss.gradients_bytes) == (0, 0)

    backward = predict_training(shape(), TrainingSetup(4000, True, "cpu", checkpointing="full"))
    assert backward.working_bytes > backward.activations_bytes > 0


def test_gradients_of_earlier_micro_batches_are_there_in_the_loss() -> None:
    wide = replace(shape(), vocab_size=100_000)
    one, several = (
        predict_training(wide, TrainingSetup(8, True, "cpu", accumulates=is_part))
        for is_part in (False, True)
    )
    assert several.gradients_bytes == 4 * wide.parameters
    assert several.loss_bytes == one.loss_bytes
    assert several.weight_casts_bytes > one.weight_casts_bytes


@given(st.integers(300, 10**6), st.sampled_from(["cpu", "mps", "cuda"]), st.sampled_from([2, 4, 8]))
def test_the_loss_never_holds_all_logits_of_a_large_vocabulary(
    vocab_size: int, kind: str, element_bytes: int
) -> None:
    rows = loss_chunk_tokens(vocab_size, kind, element_bytes)
    assert rows >= 64
    assert rows % 64 == 0
    most_bytes = (1 << 30) if kind != "cpu" else (32 << 20) if element_bytes == 2 else (128 << 20)
    assert rows == 64 or element_bytes * rows * vocab_size <= most_bytes


def test_half_precision_saves_activations() -> None:
    half, full = (
        saved_bytes_per_token(shape(), TrainingSetup(1, is_half, "cpu")) for is_half in (1, 0)
    )
    assert half < 0.75 * full


@pytest.mark.parametrize("compiled", [True, False])
def test_a_first_run_counts_what_compiling_anew_leaves(compiled: bool) -> None:
    profile = load_profile(
        "cpu-tiny", environment={}, assignments=["device.kind=cpu", "device.compile=false"]
    ).profile
    planned = plan_run(profile, measure=False)
    plan = replace(planned.plan, compile=Choice(compiled, "measured"))
    first = predict(replace(planned.workload, compiles_anew=True), plan)
    later = predict(planned.workload, plan)
    left = first.total_bytes - later.total_bytes
    assert left == (120 << 20) + (0 if compiled else 130 << 20)


@pytest.mark.parametrize(
    ("device", "build", "more_mib"),
    [("cpu", "cu130", 420), ("cpu", "for CUDA", 420), ("cpu", "cpu", 0), ("cuda", "cu130", 0)],
)
def test_a_build_for_cuda_takes_more_memory_of_a_cpu(
    device: str, build: str, more_mib: int
) -> None:
    def predicted(torch_build: str) -> int:
        setup = TrainingSetup(
            micro_batch=1, half_precision=False, device_kind=device, torch_build=torch_build
        )
        return predict_training(shape(), setup).total_bytes

    assert predicted(build) - predicted("cpu") == more_mib << 20
