"""The loop computes one function of the data, however it is cut, and never steps on a NaN."""

import dataclasses
import itertools
import math
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from llmtrain.choice import Choice, OptimizerName
from llmtrain.data.batches.packing import PackedReader, pack
from llmtrain.data.batches.permutation import permuted_index
from llmtrain.data.batches.prefetch import Prefetch
from llmtrain.data.batches.windows import BatchReader
from llmtrain.model.decoder import Decoder
from llmtrain.plan.planner import Plan
from llmtrain.profile.schema import ModelSection, OptimSection
from llmtrain.profile.shape import shape_of
from llmtrain.train.distributed.world import World
from llmtrain.train.divergence.policy import DivergenceState
from llmtrain.train.loop import Position, Run, training_steps
from llmtrain.train.parameter_groups import build_optimizer, named_state
from llmtrain.train.schedule import Schedule
from tests.tokens import PredictableIds

SECTION = ModelSection(
    vocab_size=300, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=2, context=16
)
PEAK = 1e-2
WINDOWS = 8
SEPARATOR = 0


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """What is computed here is too small to share out."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Documents(PredictableIds):
    """Of 1 to 13 tokens: some windows are not full."""

    ids = np.random.default_rng(0).integers(1, 300, 4000)
    ids[np.cumsum(np.random.default_rng(1).integers(1, 14, 280))] = SEPARATOR
    ids[[0, -1]] = SEPARATOR


def packed_documents() -> PackedReader:
    text, context = Documents(), SECTION.context
    packing = pack(text, SEPARATOR, context, horizon_chunks=20)
    return PackedReader(text, packing, SEPARATOR, context, seed=0)


def choice(value: Any) -> Choice[Any]:
    return Choice(value, "")


def make_plan(micro_batch: int, accumulation: int) -> Plan:
    return Plan(
        device=choice("cpu"),
        precision=choice("fp32"),
        matmul_precision=choice("highest"),
        processes=choice(1),
        sharding=choice("replicate"),
        sync_every=choice(1),
        threads=choice(1),
        micro_batch=choice(micro_batch),
        accumulation=choice(accumulation),
        attention=choice("sdpa"),
        loss=choice("chunks"),
        block_kernels=choice("torch"),
        compile=choice(False),
        activation_checkpointing=choice("off"),
        keep_weight_casts=choice(False),
        backend=choice("gloo"),
        grad_scaler=choice(False),
        workers=choice(1),
        pin_memory=choice(False),
        numa_binding=choice(False),
    )


def make_run(
    accumulation: int = 1,
    *,
    dtype: torch.dtype = torch.float32,
    clip: float | None = None,
    horizon_steps: int | None = 10,
    schedule: Schedule | None = None,
    packed: bool = False,
    name: OptimizerName = "muon",
    native: bool = False,
) -> Run:
    """A run of 8 windows a step, cut into so many micro-batches."""
    model = Decoder(shape_of(SECTION))
    model.has_padding = packed
    model.separator_id = SEPARATOR if packed else None
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            mean = 1.0 if parameter.dim() == 1 else 0.0
            parameter.normal_(mean, 0.1, generator=generator)
    model = model.to(dtype)
    optimizer = build_optimizer(
        model,
        OptimSection(name=name, learning_rate=PEAK, embedding_learning_rate=PEAK),
        tokens_per_step=8192,
        native=native,
    )
    return Run(
        model=model,
        objective=model,
        optimizer=optimizer,
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        schedule=schedule or Schedule("linear", 0, 0.5, 0.0),
        batches=packed_documents()
        if packed
        else BatchReader(PredictableIds(), SECTION.context, seed=0),
        plan=make_plan(WINDOWS // accumulation, accumulation),
        world=World(),
        device=torch.device("cpu"),
        position=Position(horizon_steps=horizon_steps),
        context=SECTION.context,
        peak_learning_rate=PEAK,
        gradient_clip=clip,
    )


def watch_gradients(run: Run) -> list[Tensor]:
    """The gradient of each step to come, all parameters in one vector, as the optimizer sees it."""
    seen: list[Tensor] = []

    def keep(*_: object) -> None:
        gradients = [p.grad for p in run.model.parameters() if p.grad is not None]
        seen.append(torch.cat([g.flatten() for g in gradients]).clone())

    run.optimizer.register_step_pre_hook(keep)
    return seen


def snapshot(run: Run) -> dict[str, Tensor]:
    state = run.model.state_dict() | named_state(run.model, run.optimizer)
    return {name: tensor.clone() for name, tensor in state.items()}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("accumulation", [2, 4, 8])
@pytest.mark.parametrize("packed", [False, True])
def test_micro_batches_are_one_batch(
    packed: bool, accumulation: int, dtype: torch.dtype, tolerance: float
) -> None:
    whole, cut = (make_run(n, dtype=dtype, packed=packed) for n in (1, accumulation))
    expected, found = watch_gradients(whole), watch_gradients(cut)
    reports = [next(training_steps(run)) for run in (whole, cut)]
    assert (found[0] - expected[0]).norm() / expected[0].norm() <= tolerance
    assert reports[0].loss == pytest.approx(reports[1].loss, rel=tolerance)
    assert reports[0].grad_norm == pytest.approx(reports[1].grad_norm, rel=tolerance)
    assert whole.position == cut.position


def test_gradients_are_those_of_the_mean_loss() -> None:
    run = make_run(4, dtype=torch.float64)
    seen = watch_gradients(run)
    report = next(training_steps(run))
    other = make_run(dtype=torch.float64)
    inputs, targets = (torch.from_numpy(a) for a in other.batches.read(0, WINDOWS))
    logits = other.model.logits(inputs).flatten(0, 1)
    loss = nn.functional.cross_entropy(logits, targets.flatten())
    gradient = torch.cat(
        [g.flatten() for g in torch.autograd.grad(loss, list(other.model.parameters()))]
    )
    torch.testing.assert_close(seen[0], gradient, rtol=1e-9, atol=1e-12)
    assert report.loss == pytest.approx(loss.item(), rel=1e-12)
    assert report.grad_norm == pytest.approx(gradient.norm().item(), rel=1e-9)


def test_padding_is_no_part_of_the_mean() -> None:
    """The loss of a step is that of its documents, each alone, by the number of their targets."""
    run, context = make_run(4, dtype=torch.float64, packed=True), SECTION.context
    seen = watch_gradients(run)
    report = next(training_steps(run))
    other = make_run(dtype=torch.float64)  # no padding, no mask
    text, packing = Documents(), pack(Documents(), SEPARATOR, context, horizon_chunks=20)
    losses, number = [], 0
    for position in range(WINDOWS):
        _, window = permuted_index(position, packing.num_windows, 0)
        for start, length in packing.chunks_of(window):
            tokens = torch.from_numpy(text.read(start, length + 1))
            losses.append(other.model(tokens[None, :-1], tokens[None, 1:]))
            number += length
    assert number < WINDOWS * context
    mean = torch.stack(losses).sum() / number
    gradients = torch.autograd.grad(mean, list(other.model.parameters()))
    gradient = torch.cat([g.flatten() for g in gradients])
    # angles are in fp32: differences of positions count up to their rounding
    assert report.loss == pytest.approx(mean.item(), rel=1e-9)
    assert (seen[0] - gradient).norm() <= 1e-7 * gradient.norm()
    assert run.position.tokens == WINDOWS * context  # places in windows, as the schedule counts


def test_ranks_divide_by_the_targets_of_all() -> None:
    """Each knows them without reading what the others read."""
    whole = make_run(dtype=torch.float64, packed=True)
    expected = watch_gradients(whole)
    next(training_steps(whole))
    gradients = []
    for rank in range(2):
        run = make_run(2, dtype=torch.float64, packed=True)
        run.plan = make_plan(WINDOWS // 4, 2)
        run.world = OneOf(rank=rank, size=2)
        gradients.append(watch_gradients(run))
        next(training_steps(run))
    mean = (gradients[0][0] + gradients[1][0]) / 2  # as DDP has it
    torch.testing.assert_close(mean, expected[0], rtol=1e-9, atol=1e-12)


class OneOf(World):
    """A rank whose others are not here."""

    def sum(self, values: Tensor) -> Tensor:
        return values


def test_steps_do_not_add_up_gradients_of_the_step_before() -> None:
    run = make_run(2, dtype=torch.float64)
    seen = watch_gradients(run)
    steps = training_steps(run)
    next(steps)
    weights = run.model.state_dict()
    fresh = make_run(2, dtype=torch.float64)
    fresh.model.load_state_dict(weights)
    fresh.position = dataclasses.replace(run.position)
    expected = watch_gradients(fresh)
    next(steps)
    next(training_steps(fresh))
    torch.testing.assert_close(seen[1], expected[0], rtol=1e-12, atol=0)


def test_each_step_reads_on() -> None:
    run = make_run(2)
    read: list[int] = []
    whole_read = run.batches.read

    def reading(first_position: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        read.extend(range(first_position, first_position + count))
        return whole_read(first_position, count)

    run.batches.read = reading  # type: ignore[method-assign]
    steps = training_steps(run)
    for number in range(1, 4):
        assert next(steps).step == number
        assert run.position.step == number
        assert run.position.windows == number * WINDOWS
        assert run.position.tokens == number * WINDOWS * SECTION.context
    assert read == list(range(3 * WINDOWS))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("ranks", "accumulation"), [(1, 1), (2, 2), (4, 1), (8, 1), (2, 4)])
def test_ranks_never_read_the_same_and_leave_nothing_out(
    ranks: int, accumulation: int, packed: bool
) -> None:
    """Over three steps: their slices are, one after the other, what one process reads."""
    run = make_run(packed=packed)
    expected = run.batches.read(0, 3 * WINDOWS)[0]
    run.plan = make_plan(WINDOWS // ranks // accumulation, accumulation)
    found: list[Tensor] = []
    for _ in range(3):
        for rank in range(ranks):
            run.world = World(rank=rank, size=ranks)
            found.extend(arrays[0] for arrays, _ in run.micro_batches())
        run.advance(0)
    assert torch.equal(torch.cat(found), torch.from_numpy(expected))


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("ranks", [1, 2])
def test_what_is_read_ahead_is_what_comes(accumulation: int, ranks: int) -> None:
    """All but the first batch was foreseen, over the end of a step too, and changes nothing."""
    here, read_here = threading.get_ident(), list[int]()
    run, plain = make_run(accumulation), make_run(accumulation)
    run.world = plain.world = World(rank=ranks - 1, size=ranks)

    def read(first: int, count: int) -> Any:
        if threading.get_ident() == here:
            read_here.append(first)
        return plain.batches.read(first, count)

    with Prefetch(read) as run.prefetch:
        for _ in range(4):
            pairs = zip(run.micro_batches(), plain.micro_batches(), strict=True)
            assert all(torch.equal(a, b) for x, y in pairs for a, b in zip(x[0], y[0], strict=True))
            run.advance(0)
            plain.advance(0)
    assert read_here == [(ranks - 1) * WINDOWS]


def test_a_plan_that_changes_is_no_trouble_for_what_was_read_ahead() -> None:
    run, plain = make_run(2), make_run(2)
    with Prefetch(run.batches.read) as run.prefetch:
        steps, others = training_steps(run), training_steps(plain)
        for accumulation in (2, 8, 1):
            run.plan = plain.plan = make_plan(WINDOWS // accumulation, accumulation)
            for _ in range(2):
                assert next(steps) == next(others)
    ours, theirs = snapshot(run), snapshot(plain)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_loss_falls() -> None:
    steps = training_steps(make_run(2, clip=1.0, horizon_steps=30))
    losses = [next(steps).loss for _ in range(30)]
    assert losses[-1] < losses[0] - 1.0


def test_the_reported_loss_is_from_before_the_update() -> None:
    run = make_run(dtype=torch.float64)
    inputs, targets = (torch.from_numpy(a) for a in run.batches.read(0, WINDOWS))
    with torch.no_grad():
        before = run.model(inputs, targets).item() / targets.numel()
    assert next(training_steps(run)).loss == pytest.approx(before, rel=1e-12)


@pytest.mark.parametrize("clip", [1e-3, 0.05, 1e9])
def test_gradients_are_clipped_to_a_global_norm(clip: float) -> None:
    free, clipped = make_run(dtype=torch.float64), make_run(dtype=torch.float64, clip=clip)
    expected, found = watch_gradients(free), watch_gradients(clipped)
    norm = next(training_steps(free)).grad_norm
    assert norm > 0.05
    assert next(training_steps(clipped)).grad_norm == pytest.approx(norm, rel=1e-12)
    assert found[0].norm().item() == pytest.approx(min(norm, clip), rel=1e-4)
    torch.testing.assert_close(found[0], expected[0] * min(1.0, clip / norm), rtol=1e-4, atol=0)


def test_the_learning_rate_follows_the_schedule() -> None:
    schedule = Schedule("wsd", 2, 0.5, 0.1)
    run = make_run(horizon_steps=10, schedule=schedule)
    used: list[float] = []
    run.optimizer.register_step_pre_hook(
        lambda *_: used.extend({group["lr"] for group in run.optimizer.param_groups})
    )
    steps = training_steps(run)
    reported = [next(steps).lr for _ in range(10)]
    expected = [PEAK * schedule.factor(step, step / 10) for step in range(10)]
    assert reported == pytest.approx(expected, rel=1e-12)
    assert used == pytest.approx(expected, rel=1e-12)
    assert expected[0] < expected[1] > expected[-1]


def test_a_horizon_that_becomes_known_is_heeded() -> None:
    run = make_run(horizon_steps=None)
    steps = training_steps(run)
    assert [next(steps).lr for _ in range(3)] == [PEAK] * 3
    run.position.horizon_steps = 6
    assert next(steps).lr == pytest.approx(PEAK * 0.5)


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["gradient", "loss"])
def test_what_is_not_finite_never_reaches_the_weights(
    where: str, bad: float, clip: float | None
) -> None:
    run = make_run(2, clip=clip)
    steps = training_steps(run)
    next(steps)
    before, (step, windows) = snapshot(run), (run.position.step, run.position.windows)
    if where == "gradient":
        gain = run.model.model.norm.weight
        gain.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([3]), bad))
    else:
        run.model.register_forward_hook(lambda _m, _a, nats: nats + bad)
    report = next(steps)
    assert not report.verdict.is_finite
    assert report.verdict.skipped is not None
    assert math.isfinite(report.loss) == (where == "gradient")
    assert all(p.grad is None for p in run.model.parameters())
    after = snapshot(run)
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    # its batch is not read again, and the step counts
    assert report.first_window == windows
    assert (run.position.step, run.position.windows) == (step + 1, windows + WINDOWS)
    assert run.position.tokens == (step + 1) * WINDOWS * SECTION.context


def test_training_goes_on_after_a_skipped_step_as_if_its_batch_had_not_been() -> None:
    run, spared = make_run(), make_run()
    steps, others = training_steps(run), training_steps(spared)
    next(steps)
    next(others)
    fault = run.model.register_forward_hook(lambda _m, _a, nats: nats * math.nan)
    next(steps)
    fault.remove()
    spared.position.step += 1
    spared.position.windows += WINDOWS
    assert next(steps).loss == next(others).loss
    ours, theirs = snapshot(run), snapshot(spared)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("skips", [True, False])
def test_a_leap_of_the_loss_is_skipped_where_the_run_wants_that(skips: bool) -> None:
    run = make_run()
    run.skips_spikes = skips
    run.divergence = DivergenceState(losses=(6.0, 6.1, 5.9) * 20)
    before = snapshot(run)
    run.model.register_forward_hook(lambda _m, _a, nats: nats * 3)
    report = next(training_steps(run))
    assert report.verdict.is_finite
    assert (report.verdict.skipped is not None) == skips
    weights = run.model.state_dict()
    assert all(torch.equal(weights[name], before[name]) for name in weights) == skips


def test_overflows_of_a_scaled_gradient_are_the_scalers() -> None:
    run = make_run()
    run.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    run.model.model.norm.weight.register_hook(lambda gradient: gradient * 2.0**9)
    before = snapshot(run)
    steps = training_steps(run)
    reports = [next(steps) for _ in range(12)]
    overflown = [report for report in reports if not math.isfinite(report.grad_norm)]
    assert 2 <= len(overflown) < 12
    assert all(report.verdict.skipped is None for report in reports)
    assert run.divergence.action == "continue"
    assert run.divergence.sound_step == 12
    after = snapshot(run)
    assert not torch.equal(after["model.norm.weight"], before["model.norm.weight"])


def test_scaled_gradients_that_overflow_without_end_are_skipped() -> None:
    run = make_run()
    run.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    run.model.model.norm.weight.register_hook(lambda gradient: gradient * math.inf)
    before, steps = snapshot(run), training_steps(run)
    verdicts = [next(steps).verdict for _ in range(25)]
    assert [v.is_finite for v in verdicts] == [True] * 20 + [False] * 5
    assert run.divergence.action == "rewind"
    after = snapshot(run)
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.usefixtures("native_kernels")
@pytest.mark.parametrize("clip", [None, 1e-2])
def test_native_kernels_take_the_same_steps(clip: float | None) -> None:
    """The norm in the report is that before clipping, which is a part of the update."""
    runs = [make_run(2, clip=clip, name="adamw", native=native) for native in (False, True)]
    for expected, found in itertools.islice(zip(*map(training_steps, runs), strict=True), 5):
        assert found.loss == pytest.approx(expected.loss, rel=1e-5)
        assert found.grad_norm == pytest.approx(expected.grad_norm, rel=1e-4)
    plain, native = map(snapshot, runs)
    assert plain.keys() == native.keys()
    for name, tensor in plain.items():
        torch.testing.assert_close(native[name], tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.usefixtures("native_kernels")
def test_what_is_not_finite_never_reaches_weights_of_native_kernels() -> None:
    run = make_run(clip=1.0, native=True)
    steps = training_steps(run)
    next(steps)
    before = snapshot(run)
    handle = run.model.model.norm.weight.register_hook(lambda gradient: gradient * math.nan)
    assert next(steps).verdict.skipped is not None
    assert all(torch.equal(before[name], tensor) for name, tensor in snapshot(run).items())
    handle.remove()
    assert next(steps).verdict.skipped is None
    assert all(tensor.isfinite().all() for tensor in snapshot(run).values())
