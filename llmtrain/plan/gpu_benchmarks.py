"""Which benchmarks a plan for a GPU needs: the parts of its step, by our own kernels or torch's.

Our own kernels were made on one kind of GPU. That they work on the one at hand, and are no slower
than torch's, shows only there.
"""

from __future__ import annotations

from llmtrain.machine.facts import Facts, GpuTimes, StepTimes
from llmtrain.machine.out_of_memory import MEMORY_ERRORS, out_of_memory
from llmtrain.model.timing import CompileError, KernelError
from llmtrain.plan.gpu_kernels import asks_for_own, is_worth_comparing, without_own_kernels
from llmtrain.plan.kernel_probes import Announce
from llmtrain.plan.planner import Plan, make_plan
from llmtrain.plan.step_benchmarks import step_probes
from llmtrain.plan.workload import Workload
from llmtrain.profile.schema import DeviceSection


def measured_gpu(
    facts: Facts, options: DeviceSection, workload: Workload, announce: Announce | None = None
) -> GpuTimes | None:
    """Return the measurements that a plan for a CUDA GPU goes by; None where there are none.

    They compile what the run computes, which takes seconds to tens of seconds: without `announce`,
    which reports it, only saved ones are returned. That our own kernels cannot run here is saved
    like a time. Where torch's own kernels fail there are none, as the run will meet the same
    failure.
    """
    plan = make_plan(facts, options, workload)
    torch_options = without_own_kernels(options)
    torch_plan = make_plan(facts, torch_options, workload)
    try:
        own = _timed(facts, workload, plan, announce)
    except CompileError as error:
        if plan == torch_plan:
            return None
        return GpuTimes(
            torch=_timed_or_none(facts, workload, torch_plan, announce), own_failure=error.message
        )
    if own is None:
        return None
    has_choice = plan != torch_plan and not asks_for_own(options)
    if not has_choice or not is_worth_comparing(workload, own, plan.processes.value):
        return GpuTimes(own)
    return GpuTimes(own, _timed_or_none(facts, workload, torch_plan, announce))


def _timed(
    facts: Facts, workload: Workload, plan: Plan, announce: Announce | None
) -> StepTimes | None:
    """Return the parts of the plan's step; None if they are not saved and must not be measured.

    None too where the GPU has no room for them, as other programs use it or each has a share.
    Raises CompileError, also one that an earlier measurement saved.
    """
    probes = step_probes(facts, workload, plan)
    if (reason := probes.failure()) is not None:
        raise KernelError(reason)
    if not probes.have("contended"):
        if announce is None:
            return None
        announce(f"timing the parts of a step{_by(plan)}, once for this GPU and shape")
    try:
        return probes.times("missing")
    except MEMORY_ERRORS as error:  # a run has other means, and a smaller micro-batch
        if out_of_memory(error) is None:
            raise
        return None


def _timed_or_none(
    facts: Facts, workload: Workload, plan: Plan, announce: Announce | None
) -> StepTimes | None:
    try:
        return _timed(facts, workload, plan, announce)
    except CompileError:
        return None


def _by(plan: Plan) -> str:
    by = "our own kernels" if plan.block_kernels.value == "triton" else "torch's kernels"
    return f" by {by}, compiled: up to a minute" if plan.compile.value else ""
