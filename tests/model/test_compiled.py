"""Compiled, the decoder computes what it does eagerly. Few compilations: each is slow."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llmtrain.machine.probe import read_facts
from llmtrain.model.decoder import Decoder
from llmtrain.plan.tensor_bytes import TrainingSetup, saved_bytes_per_token
from llmtrain.profile.shape import ModelShape

pytestmark = [
    pytest.mark.slow,
    # torch hides it from users, though not from a filter that makes it an error
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
    pytest.mark.skipif(read_facts().cxx_compiler is None, reason="needs a C++ compiler"),
]
SEQUENCES = 3


@pytest.fixture(autouse=True)
def _compiled_here(tmp_path: Path) -> Iterator[None]:
    """What is compiled is compiled anew, into a directory of its own."""
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
        yield
    torch.compiler.reset()


@pytest.fixture
def model(small_shape: ModelShape, make_model: Callable[[ModelShape], Decoder]) -> Decoder:
    return make_model(dataclasses.replace(small_shape, num_kv_heads=2))


def test_a_model_to_be_compiled_loads_the_compiler_at_once(model: Decoder) -> None:
    """So that it counts as starting, before a run forecasts its end: seconds, on some CPUs tens."""
    from torch._inductor.cpu_vec_isa import valid_vec_isa_list

    valid_vec_isa_list.cache_clear()
    model.compute_with(compiled=True)
    assert valid_vec_isa_list.cache_info().misses == 1


def test_compiled_equals_eager_and_keeps_what_is_predicted(model: Decoder) -> None:
    """Blocks of attention, selective checkpointing: what a long run on a CPU computes with."""
    shape = model.shape
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 512, (SEQUENCES, shape.context + 1), generator=generator)
    parameters = list(model.parameters())

    def loss_and_gradients() -> list[Tensor]:
        loss = model(tokens[:, :-1], tokens[:, 1:])
        return [loss.detach(), *torch.autograd.grad(loss, parameters)]

    expected = loss_and_gradients()
    model.compute_with(attention="blocks", checkpointing="selective", compiled=True)
    own = {t.untyped_storage().data_ptr() for t in (*parameters, *model.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        where = tensor.untyped_storage().data_ptr()
        if where not in own:
            kept[where] = tensor  # held, so that no other tensor gets its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found = loss_and_gradients()
    assert all((a - b).norm() <= 1e-5 * b.norm() for a, b in zip(found, expected, strict=True))

    # One for the block, whichever layer it is, and three for the loss's softmax.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 4
    count = SEQUENCES * shape.context
    saved = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    predicted = count * saved_bytes_per_token(
        shape, TrainingSetup(1, False, "cpu", checkpointing="selective", compiled=True)
    )
    hidden = count * shape.hidden_size * 4  # the loss holds it, which autograd does not save
    assert saved + hidden == pytest.approx(predicted, rel=0.01)


def test_masked_documents_are_compiled_once_wherever_they_begin(model: Decoder) -> None:
    """Shapes are those of the window, whatever documents it holds."""
    model.separator_id = 7
    parameters = list(model.parameters())

    def loss_and_gradients(seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(0, 30, (SEQUENCES, model.shape.context + 1), generator=generator)
        loss = model(tokens[:, :-1], tokens[:, 1:])
        return [loss.detach(), *torch.autograd.grad(loss, parameters)]

    expected = [loss_and_gradients(seed) for seed in (0, 1)]
    model.compute_with(attention="blocks", checkpointing="selective", compiled=True)
    for seed in (0, 1):
        pairs = zip(loss_and_gradients(seed), expected[seed], strict=True)
        assert all((a - b).norm() <= 1e-5 * b.norm() for a, b in pairs)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 4
