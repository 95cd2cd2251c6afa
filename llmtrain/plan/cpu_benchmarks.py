"""Which benchmarks a plan for this CPU needs: kernels, and the parts of a step, each run once."""

from __future__ import annotations

from dataclasses import dataclass, replace

from llmtrain.errors import DoesNotFitError
from llmtrain.machine.facts import BlockTimes, CpuTimes, Facts, MatmulTimes, StepTimes
from llmtrain.machine.measurement_cache import T
from llmtrain.model.timing import CompileError
from llmtrain.plan import decisions as decide
from llmtrain.plan.kernel_probes import (
    Announce,
    attention_probe,
    block_probe,
    cpu_threads,
    loss_probe,
    native_kernels,
    products_probe,
)
from llmtrain.plan.native_kernels import (
    is_worth_comparing_native,
    unfit_for_native_block,
    unfit_for_native_loss,
    without_native,
)
from llmtrain.plan.numerics import choose_precision
from llmtrain.plan.planner import Plan, make_plan
from llmtrain.plan.probe import Measure, Probe
from llmtrain.plan.step_benchmarks import StepProbes, step_probes
from llmtrain.plan.throughput import compiled_block, predicted_tokens_per_s
from llmtrain.plan.workload import Workload
from llmtrain.profile.schema import DeviceSection
from llmtrain.profile.shape import ModelShape


def measured_products(facts: Facts, shape: ModelShape, threads: int) -> MatmulTimes:
    """Return the times of the model's products in each precision, saved or fresh."""
    return products_probe(facts, shape, threads).times()


def measured_cpu(
    facts: Facts,
    options: DeviceSection,
    workload: Workload,
    announce: Announce | None = None,
    measure: Measure | None = None,
) -> CpuTimes:
    """Return all measurements that a plan for this CPU needs.

    Compiling takes seconds to tens of seconds: that is done only where `announce` is given, which
    reports it, and the run is to be compiled. `measure`: what is timed although it was before;
    None: as `usual_measure` says.
    """
    measure = measure or usual_measure(announce)
    times = measured_eager_step(facts, options, workload, announce, measure)
    plan = _plan_to_compile(facts, options, workload, times)
    if plan is None:
        return times
    probe, step = block_probe(facts, workload, plan), step_probes(facts, workload, plan)
    saved = probe.saved()
    if announce is None:
        if saved is None:
            return times
        block = compiled_block(saved, times.eager, step.micro_batch)
        return replace(times, block=saved, compiled=step.saved_times(block))
    if saved is not None:  # also of a busy machine: the ratio of its CPU times holds
        times = replace(times, block=saved)
    else:
        announce("compiling one block, once for this machine and shape: up to a minute")
        times = with_fresh_block(times, probe, announce)
    if not make_plan(facts, options, workload, times).compile.value:
        return times
    return with_compiled_step(times, step, announce, measure)


def measured_eager_step(
    facts: Facts,
    options: DeviceSection,
    workload: Workload,
    announce: Announce | None = None,
    measure: Measure | None = None,
) -> CpuTimes:
    """Return the times of the kernels and of the parts of an eager step.

    Whether native kernels are among them depends on how long the run takes without them. Without
    the parts where only a compiled step fits the memory. `measure` is as of `measured_cpu`.
    """
    threads = cpu_threads(facts, options, workload)
    timing = _Timing(announce, measure or usual_measure(announce))
    products = timing.of(products_probe(facts, workload.shape, threads), "products")
    attention = timing.of(attention_probe(facts, options, workload, products), "attention")
    times = CpuTimes(products, replace(attention, native_s=None))
    plain = timing.of_step(facts, without_native(options), workload, times)
    times = replace(times, plain=plain, eager=plain)
    loaded = native_kernels(facts, options, workload, times, announce, always=measure == "all")
    if loaded is None:
        return times
    if not loaded.value:
        return replace(times, native_missing=loaded.reason)
    probe = attention_probe(facts, options, workload, products, native=True)
    times = replace(times, attention=timing.of(probe, "attention by native kernels"))
    is_bf16 = choose_precision(facts, options, "cpu", times.matmul).value == "bf16"
    if is_bf16 and unfit_for_native_loss(workload) is None:
        micro_batch = make_plan(facts, options, workload, times).micro_batch.value
        loss = timing.of(loss_probe(facts, options, workload, micro_batch), "the loss")
        times = replace(times, loss=loss)
    by_torch = options.model_copy(update={"block_kernels": "torch"})
    eager = timing.of_step(facts, by_torch, workload, times, " by native kernels")
    times = replace(times, eager=eager)
    fits_block = is_bf16 and unfit_for_native_block(options, workload) is None
    if options.block_kernels == "torch" or not fits_block:
        return times
    by_native = options.model_copy(update={"block_kernels": "native", "compile": "auto"})
    native = timing.of_step(facts, by_native, workload, times, " of native blocks")
    times = replace(times, native=native)
    return replace(times, native_keeping=_keeping_gates(facts, by_native, workload, times, timing))


def _keeping_gates(
    facts: Facts, options: DeviceSection, workload: Workload, times: CpuTimes, timing: _Timing
) -> StepTimes | None:
    """Return the parts of a step whose native blocks keep their gates.

    None where that is not to be decided, or would take a smaller micro-batch.
    """
    if options.activation_checkpointing != "auto" or workload.lora is not None:
        return None
    keeping = options.model_copy(update={"activation_checkpointing": "off"})
    probes = eager_step_probes(facts, keeping, workload, times)
    if times.native is None or probes is None or probes.micro_batch != times.native.micro_batch:
        return None
    return timing.of_parts(probes, " of native blocks that keep gates")


def usual_measure(announce: Announce | None) -> Measure:
    """Return what to measure for a plan that is only shown, or for a run that is about to start."""
    return "missing" if announce is None else "contended"


def _plan_to_compile(
    facts: Facts, options: DeviceSection, workload: Workload, times: CpuTimes
) -> Plan | None:
    """Return the plan whose block is compiled, to be used or compared; None: nothing is.

    A run that lasts for minutes compares compiled blocks with native ones, which another uses.
    """
    plan = make_plan(facts, options, workload, times)
    if options.block_kernels == "auto" and plan.block_kernels.value == "native":
        assert times.native is not None
        if not is_worth_comparing_native(workload, times.native, plan.processes.value):
            return None
        by_torch = options.model_copy(update={"block_kernels": "torch"})
        plan = make_plan(facts, by_torch, workload, times)
    return plan if plan.compile.value else None


@dataclass(frozen=True, slots=True)
class _Timing:
    """Measures what is to be measured, and announces it."""

    announce: Announce | None
    measure: Measure

    def of(self, probe: Probe[T], what: str) -> T:
        saved = None if self.measure == "all" else probe.saved()
        if saved is not None:
            return saved
        self._announce(what)
        return probe.fresh()

    def of_step(
        self,
        facts: Facts,
        options: DeviceSection,
        workload: Workload,
        times: CpuTimes,
        by: str = "",
    ) -> StepTimes | None:
        """Return the parts of an eager step; None where it does not fit the memory."""
        probes = eager_step_probes(facts, options, workload, times)
        return None if probes is None else self.of_parts(probes, by)

    def of_parts(self, probes: StepProbes, by: str) -> StepTimes:
        """Return the times of these parts."""
        if not probes.have(self.measure):
            self._announce(f"the parts of a step{by}")
        return probes.times(self.measure)

    def _announce(self, what: str) -> None:
        if self.announce is None:
            return
        is_once = self.measure != "all"
        once = ", once for this machine and shape: a few seconds" if is_once else ""
        self.announce(f"timing {what}{once or '…'}")


def eager_step_probes(
    facts: Facts, options: DeviceSection, workload: Workload, times: CpuTimes
) -> StepProbes | None:
    """Return the benchmarks of an eager step; None if it does not fit the memory."""
    eager = options.model_copy(update={"compile": False})
    try:
        plan = make_plan(facts, eager, workload, times)
    except DoesNotFitError:
        return None
    return step_probes(facts, workload, plan)


def eager_tokens_per_s(
    facts: Facts, options: DeviceSection, workload: Workload, announce: Announce | None = None
) -> float | None:
    """Return the rate of an eager run, measured once; None if only a compiled one fits.

    What compiling gains is not known before it is done; it gains alike for every shape, and a
    choice that is made before it should not depend on whether it was done. So it is with native
    kernels: the rate is that without them.
    """
    parts = measured_eager_step(facts, options, workload, announce, "missing").plain
    if parts is None:
        return None
    return predicted_tokens_per_s(
        workload.shape,
        parts,
        tokens_per_step=workload.tokens_per_step,
        processes=decide.choose_processes(facts, options, workload, "cpu").value,
    )


def with_fresh_block(times: CpuTimes, probe: Probe[BlockTimes], announce: Announce) -> CpuTimes:
    """Return `times` with a block measured now, or with the reason why it cannot be compiled."""
    try:
        block = probe.fresh()
    except CompileError as error:
        return replace(times, compile_failure=error.message)
    announce(f"compiled in {block.compile_s:.0f} s")
    return replace(times, block=block)


def with_compiled_step(
    times: CpuTimes, step: StepProbes, announce: Announce, measure: Measure
) -> CpuTimes:
    """Return `times` with the parts of a compiled step, measured if they are not saved."""
    if times.block is None:
        return times
    if not step.have(measure):
        announce("compiling the loss, once for this machine and shape: some seconds")
    block = compiled_block(times.block, times.eager, step.micro_batch)
    try:
        return replace(times, compiled=step.times(measure, block))
    except CompileError as error:
        return replace(times, compile_failure=error.message)


def forget_step(facts: Facts, workload: Workload, plan: Plan) -> None:
    """Forget the parts of the plan's step: the next run measures them again."""
    step_probes(facts, workload, plan).forget()
    if plan.compile.value:
        block_probe(facts, workload, plan).forget()
