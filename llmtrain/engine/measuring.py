"""What this CPU does the profile's own work at: measured once, then remembered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from llmtrain.device import arithmetic
from llmtrain.device import decisions as decide
from llmtrain.device.choice import Needs
from llmtrain.device.facts import AttentionTimes, BlockTimes, CpuTimes, Facts, MatmulTimes
from llmtrain.device.plan import Plan, make_plan
from llmtrain.device.probe_cache import ProbeKey, cached_times, keep_times, kept_times, probe_key
from llmtrain.device.timing import time_matmuls
from llmtrain.files import cache_directory
from llmtrain.model.timing import CompileError, time_attention, time_block
from llmtrain.profile.schema import DeviceSection
from llmtrain.profile.shape import ModelShape

PROBE_TOKENS = 2048

Announce = Callable[[str], None]


def measured_products(facts: Facts, shape: ModelShape, threads: int) -> MatmulTimes:
    """The profile's matrix products in each precision; about a second, once."""
    hidden, intermediate = shape.hidden_size, shape.intermediate_size
    key = probe_key(
        facts, "products", threads, hidden=hidden, intermediate=intermediate, tokens=PROBE_TOKENS
    )
    return cached_times(
        cache_directory(),
        key,
        MatmulTimes,
        lambda: time_matmuls(hidden, intermediate, PROBE_TOKENS, threads),
    )


def measured_cpu(
    facts: Facts, wishes: DeviceSection, needs: Needs, announce: Announce | None = None
) -> CpuTimes:
    """All that a plan for this CPU asks to be measured.

    Compiling a block takes seconds to tens of seconds: that is done, and `announce` told, only
    where there is an `announce` and the run is long enough to gain by it.
    """
    local = needs.launched_local_processes or 1
    threads = decide.threads(facts, wishes, local).value
    times = CpuTimes(measured_products(facts, needs.shape, threads))
    precision = arithmetic.precision(facts, wishes, "cpu", times.matmul).value
    attention_key = _shape_key(facts, "attention", threads, needs.shape, precision=precision)
    attention = cached_times(
        cache_directory(),
        attention_key,
        AttentionTimes,
        lambda: time_attention(needs.shape, precision, threads),
    )
    times = replace(times, attention=attention)
    plan = make_plan(facts, wishes, needs, times)
    if wishes.compile != "auto" or not plan.compile.value:
        return times
    return _with_block(times, facts, needs, plan, announce)


def _with_block(
    times: CpuTimes, facts: Facts, needs: Needs, plan: Plan, announce: Announce | None
) -> CpuTimes:
    key = _block_key(facts, needs, plan)
    kept = kept_times(cache_directory(), key, BlockTimes)
    if kept is not None:
        return replace(times, block=kept)
    if announce is None:
        return times
    announce("compiling one block, once for this machine and shape")
    try:
        block = measure_block(needs, plan)
    except CompileError as error:
        return replace(times, compile_failure=error.message)
    keep_times(cache_directory(), key, block)
    announce(f"compiled in {block.compile_s:.0f} s")
    return replace(times, block=block)


def measure_block(needs: Needs, plan: Plan) -> BlockTimes:
    """One block, as the plan computes it, eager and compiled. Raises CompileError."""
    return time_block(
        needs.shape,
        micro_batch=plan.micro_batch.value,
        precision=plan.precision.value,
        attention=plan.attention.value,
        checkpointing=plan.activation_checkpointing.value,
        keep_casts=plan.keep_weight_casts.value,
        threads=plan.threads.value,
    )


def _block_key(facts: Facts, needs: Needs, plan: Plan) -> ProbeKey:
    return _shape_key(
        facts,
        "block",
        plan.threads.value,
        needs.shape,
        micro_batch=plan.micro_batch.value,
        precision=plan.precision.value,
        attention=plan.attention.value,
        checkpointing=plan.activation_checkpointing.value,
        keep_casts=str(plan.keep_weight_casts.value),
        compiler=str(facts.cxx_compiler),
    )


def _shape_key(
    facts: Facts, what: str, threads: int, shape: ModelShape, **others: int | str
) -> ProbeKey:
    return probe_key(
        facts,
        what,
        threads,
        hidden=shape.hidden_size,
        intermediate=shape.intermediate_size,
        heads=shape.num_heads,
        key_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        qk_norm=str(shape.qk_norm),
        context=shape.context,
        **others,
    )
