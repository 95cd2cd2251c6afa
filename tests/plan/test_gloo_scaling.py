"""What ranks on machines of CPUs take for a step: their computation, and an exchange over gloo."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmtrain.machine.facts import ExchangeTimes
from llmtrain.plan.gloo_scaling import Computation, GlooNetwork, predict_gloo_step
from llmtrain.plan.scaling import StepPrediction
from llmtrain.plan.workload import Workload
from llmtrain.profile.schema import ModelSection
from llmtrain.profile.shape import shape_of

MIB = 1 << 20
LOCAL = ExchangeTimes(latency_s=4e-4, byte_s=1e-9, cpu_byte_s=5e-10)
COMPUTATION = Computation(micro_s=3.0, update_s=0.5, head_share=0.2)
SMALL = shape_of(ModelSection(vocab_size=1024, hidden_size=128, num_layers=4, num_heads=2))
LARGE = shape_of(ModelSection(vocab_size=8192, hidden_size=512, num_layers=12, num_heads=4))


def network(ranks: int, nodes: int, **changes: float) -> GlooNetwork:
    base = GlooNetwork(ranks, nodes, LOCAL, max(2, ranks // nodes), 1e8, 1e-3)
    return replace(base, **changes)


def work(shape: object = SMALL, **changes: object) -> Workload:
    return replace(Workload(SMALL, tokens_per_step=8192), shape=shape, **changes)


def step(
    linked: GlooNetwork, workload: Workload | None = None, computation: Computation = COMPUTATION
) -> StepPrediction:
    return predict_gloo_step(workload or work(), computation, linked, micro_batches=2)


def test_one_rank_computes_and_sends_nothing() -> None:
    found = step(network(1, 1))
    assert found.step_s == pytest.approx(2 * 3.0 + 0.5)
    assert (found.communication_s, found.exposed_s, found.received_bytes) == (0, 0, 0)


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_ranks_of_one_machine_exchange_as_they_were_timed(ranks: int) -> None:
    reduce = network(ranks, 1).all_reduce()
    assert reduce.seconds(0) == pytest.approx(LOCAL.latency_s)
    assert reduce.seconds(MIB) == pytest.approx(LOCAL.latency_s + MIB * LOCAL.byte_s)


def test_their_timed_step_is_taken_as_it_is() -> None:
    timed = replace(COMPUTATION, synced_s=3.25)
    sums_s = 2 * network(2, 1).all_reduce().seconds(64)
    assert step(network(2, 1), computation=timed).step_s == pytest.approx(6.75 + sums_s)


@pytest.mark.parametrize(("ranks", "nodes"), [(2, 2), (4, 4), (8, 2)])
def test_a_ring_sends_every_part_past_every_rank(ranks: int, nodes: int) -> None:
    """Also where several ranks are on a machine: one link leads to each."""
    linked = network(ranks, nodes)
    reduce = linked.all_reduce()
    received = 2 * (ranks - 1) / ranks * 64 * MIB
    hops_s = 2 * (ranks - 1) * linked.hop_s
    assert reduce.seconds(64 * MIB) == pytest.approx(hops_s + received / linked.bytes_per_s)
    assert step(linked).received_bytes == pytest.approx(
        2 * (ranks - 1) / ranks * 4 * SMALL.parameters
    )


def test_a_fast_network_is_no_faster_than_the_cores() -> None:
    fast = network(2, 2, bytes_per_s=1e12, round_trip_s=0.0).all_reduce()
    assert fast.seconds(MIB) == pytest.approx(network(2, 1).all_reduce().seconds(MIB))


def test_gradients_of_a_small_model_are_sent_when_the_backward_has_ended() -> None:
    """DDP sends nothing before a bucket is full, and all but the first are of 25 MiB."""
    linked = network(2, 2, bytes_per_s=1e7)
    found, size = step(linked), 4 * SMALL.parameters
    left_s = linked.all_reduce().seconds(size - 2 * MIB)
    assert size < 25 * MIB
    assert left_s < found.exposed_s <= found.communication_s


def test_gradients_of_a_large_model_are_sent_beside_the_backward() -> None:
    linked = network(2, 2, bytes_per_s=4 * LARGE.parameters / 1.5)  # 1.5 s beside 2 s
    found = step(linked, work(LARGE))
    assert found.communication_s > 1.5
    assert found.exposed_s < 0.6 * found.communication_s


def test_the_cores_do_an_exchange_in_the_time_of_the_backward() -> None:
    """However fast the network is, and however long the backward: it has all cores."""
    linked = network(2, 2, bytes_per_s=1e12)
    long = replace(COMPUTATION, micro_s=300.0)
    copied_s = LOCAL.cpu_byte_s * 4 * LARGE.parameters
    exposed_s = step(linked, work(LARGE), long).exposed_s
    assert 0.5 * copied_s < exposed_s < 1.5 * copied_s


def test_every_step_ends_with_sums_that_take_round_trips() -> None:
    near, far = (step(network(4, 4, round_trip_s=s)).step_s for s in (0.0, 0.1))
    assert far - near > 2 * 6 * 0.1


def test_rounds_send_once_in_so_many_steps() -> None:
    linked = network(2, 2, bytes_per_s=1e6, round_trip_s=0.0)
    often, rarely = (step(linked, work(sync_every=every)) for every in (10, 30))
    assert rarely.communication_s == pytest.approx(often.communication_s / 3)
    assert rarely.exposed_s == rarely.communication_s
    half = step(linked, work(sync_every=30, sync_precision="bf16"))
    assert half.received_bytes == pytest.approx(rarely.received_bytes / 2)
    assert half.communication_s == pytest.approx(rarely.communication_s / 2, rel=0.01)


def test_ranks_of_a_machine_share_its_network_in_rounds() -> None:
    rounds = work(sync_every=10)
    apart, together = (step(network(8, nodes, round_trip_s=0.0), rounds) for nodes in (8, 2))
    assert together.communication_s > 2 * apart.communication_s


def test_a_delayed_exchange_is_beside_steps_but_for_the_cores_work() -> None:
    linked = network(2, 2, bytes_per_s=1e6, round_trip_s=0.0)
    plain = step(linked, work(sync_every=10))
    delayed = step(linked, work(sync_every=10, sync_delay=3))
    assert plain.exposed_s * 10 < 3 * 6.5, "as long as three steps"
    assert delayed.communication_s == plain.communication_s
    copied_s = LOCAL.cpu_byte_s * 4 * SMALL.parameters
    sums_s = 2 * linked.all_reduce().seconds(64)
    assert delayed.exposed_s == pytest.approx((copied_s + sums_s) / 10)
    slow = step(replace(linked, bytes_per_s=1e5), work(sync_every=10, sync_delay=3))
    assert slow.exposed_s > delayed.exposed_s, "it is not over after three steps"
