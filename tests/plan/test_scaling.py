from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llmtrain.choice import Choice
from llmtrain.machine.assume import assume_machine
from llmtrain.plan.planner import Plan, make_plan
from llmtrain.plan.scaling import (
    Hardware,
    StepPrediction,
    predict_exchange,
    predict_step,
    scaled_shape,
)
from llmtrain.plan.workload import Workload
from llmtrain.profile.load import load_profile
from llmtrain.profile.schema import DeviceSection
from llmtrain.profile.shape import shape_of

FAST = Hardware(peak_flops=1e15, utilisation=0.5, link_bytes_per_s=4e11, network_bytes_per_s=5e10)


def planned(ranks: int, local: int, **options: Any) -> tuple[Workload, Plan]:
    facts = assume_machine(f"cuda:{local}x80GiB", python_version="3", torch_version="2").facts
    profile = load_profile("gpu-large", environment={}).profile
    workload = Workload(
        shape=shape_of(profile.model),
        tokens_per_step=profile.train.chosen_tokens_per_step,
        launched_processes=ranks if ranks > 1 else None,
        launched_local_processes=local if ranks > 1 else None,
        optimizer="muon",
    )
    return workload, make_plan(facts, DeviceSection.model_validate(options), workload)


def step(ranks: int, local: int, hardware: Hardware = FAST, **options: Any) -> StepPrediction:
    return predict_step(*planned(ranks, local, **options), hardware, nodes=ranks // local)


def test_one_gpu_computes_and_sends_nothing() -> None:
    workload, plan = planned(1, 1)
    found = predict_step(workload, plan, FAST, nodes=1)
    more = {"off": 1.0, "selective": 1.05, "full": 4 / 3}[plan.activation_checkpointing.value]
    flops = workload.flops_per_token * workload.tokens_per_step
    assert found.compute_s / more + found.update_s == pytest.approx(flops / 5e14)
    assert (found.communication_s, found.exposed_s, found.received_bytes) == (0, 0, 0)
    assert 0 < found.update_s < found.compute_s / 10


@pytest.mark.parametrize("ranks", [8, 64, 512])
def test_many_gpus_compute_no_faster_than_one(ranks: int) -> None:
    """With few tokens each, the optimizer's products are most of a step, and stay as slow."""
    workload, plan = planned(ranks, 8)
    found = predict_step(workload, plan, FAST, nodes=ranks // 8)
    flops = workload.flops_per_token * workload.tokens_per_step / ranks
    assert found.compute_s > flops / (1.1 * FAST.peak_flops * FAST.utilisation)


def test_replicas_receive_their_gradients_twice_in_fp32() -> None:
    workload, _ = planned(8, 8)
    found = step(8, 8, sharding="replicate")
    size = 4 * workload.shape.parameters
    assert found.received_bytes == 2 * size
    assert found.communication_s == pytest.approx(2 * size * 7 / 8 / 4e11)
    assert found.exposed_s < found.communication_s, "most of it is beside the last backward"


def test_rounds_send_weights_once_in_so_many_steps_beside_nothing() -> None:
    workload, plan = planned(16, 8, sharding="replicate")
    often = predict_step(workload, plan, FAST, nodes=2)
    rarely = predict_step(replace(workload, sync_every=30), plan, FAST, nodes=2)
    assert rarely.received_bytes == pytest.approx(often.received_bytes / 30)
    assert rarely.exposed_s == rarely.communication_s == pytest.approx(often.communication_s / 30)
    in_bf16 = replace(workload, sync_every=30, sync_precision="bf16")
    half = predict_step(in_bf16, plan, FAST, nodes=2)
    assert half.received_bytes == pytest.approx(rarely.received_bytes / 2)
    assert half.communication_s == pytest.approx(rarely.communication_s / 2)


def test_an_exchange_takes_as_long_as_in_a_step() -> None:
    workload, plan = planned(16, 8, sharding="replicate")
    found = predict_exchange(plan, FAST, nodes=2).seconds(4 * workload.shape.parameters)
    assert found == pytest.approx(predict_step(workload, plan, FAST, nodes=2).communication_s)


def test_machines_share_their_network() -> None:
    """A slow one is what counts, and what does not fit beside the computation is added."""
    inside, between = step(16, 16), step(16, 8)
    slow = step(16, 8, replace(FAST, network_bytes_per_s=1e8))
    assert inside.communication_s < between.communication_s < slow.communication_s
    assert slow.exposed_s > 0.9 * slow.communication_s
    assert slow.step_s > between.step_s >= between.compute_s


def test_a_sharded_model_gathers_in_every_micro_batch() -> None:
    workload, plan = planned(8, 8, sharding="shard")
    found = predict_step(workload, plan, FAST, nodes=1)
    shape, number = workload.shape, plan.accumulation.value
    matrices = shape.num_layers * shape.block_matrix_parameters
    ends = 2 * 4 * shape.embedding_parameters
    assert found.received_bytes == number * (8 * matrices + ends) + 4 * matrices
    more = replace(plan, accumulation=Choice(2 * number, ""))
    assert predict_step(workload, more, FAST, nodes=1).received_bytes > found.received_bytes
    assert found.update_s < step(8, 8, sharding="replicate").update_s, "owners share the matrices"


def test_with_a_replica_on_each_machine_only_gradients_travel_between_them() -> None:
    workload, plan = planned(16, 8, sharding="hybrid")
    found = predict_step(workload, plan, FAST, nodes=2)
    alone = replace(workload, launched_processes=8)
    eight = replace(plan, processes=Choice(8, ""), sharding=Choice("shard", ""))
    within = predict_step(alone, eight, FAST, nodes=1)
    size = 4 * workload.shape.parameters
    assert found.received_bytes == pytest.approx(within.received_bytes + 2 * size / 8)
    between_s = 2 * size / 2 / FAST.network_bytes_per_s
    assert found.communication_s == pytest.approx(within.communication_s + between_s)
    assert found.update_s == pytest.approx(within.update_s, rel=0.1), "each machine has its owners"


def test_gradients_between_machines_do_not_grow_with_the_micro_batches() -> None:
    """A slow network is used once a step; a model that is sharded over it in each of them."""
    slow = replace(FAST, network_bytes_per_s=1e9)
    few, many = {}, {}
    for sharding in ("hybrid", "shard"):
        workload, plan = planned(16, 8, sharding=sharding)
        few[sharding] = predict_step(workload, plan, slow, nodes=2)
        more = replace(plan, accumulation=Choice(4 * plan.accumulation.value, ""))
        many[sharding] = predict_step(workload, more, slow, nodes=2)
    assert many["hybrid"].communication_s < 2 * few["hybrid"].communication_s
    assert many["shard"].communication_s > 3 * few["shard"].communication_s
    assert few["hybrid"].step_s < few["shard"].step_s


def test_a_scaled_shape_keeps_its_proportions() -> None:
    shape = shape_of(load_profile("gpu-large", environment={}).profile.model)
    assert scaled_shape(shape, shape.hidden_size) == shape
    double = scaled_shape(shape, 2 * shape.hidden_size)
    assert (double.num_layers, double.num_heads) == (2 * shape.num_layers, 2 * shape.num_heads)
    assert 7.5 < double.parameters / shape.parameters < 8.5
    assert scaled_shape(shape, 128).num_layers >= 1
