"""Benchmark the parts of a training step on this CPU, once for each shape and way to compute.

A measurement that shared its cores with other programs is saved as such: the next run that begins
measures again, and the one with the most of the cores stays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

from llmtrain.files import cache_directory
from llmtrain.machine.facts import Facts, PartTime, StepTimes
from llmtrain.machine.measurement_cache import (
    MeasurementKey,
    load_measurement,
    measurement_key,
    remove_measurement,
    save_measurement,
)
from llmtrain.model.step_timing import Way, time_eager_block, time_head, time_update
from llmtrain.model.timing import multiplied_in
from llmtrain.ops.native.library import kernel_source
from llmtrain.plan.planner import Plan
from llmtrain.plan.workload import Workload

# What is measured although it was before: nothing, what shared its cores, or everything.
Measure = Literal["missing", "contended", "all"]


@dataclass(frozen=True, slots=True)
class PartProbe:
    """The measurement of one part, and the key that it is saved under."""

    key: MeasurementKey
    measure: Callable[[], PartTime]

    def saved(self) -> PartTime | None:
        """Return the saved time; None where there is none."""
        return load_measurement(cache_directory(), self.key, PartTime)

    def fresh(self) -> PartTime:
        """Measure now; return and save the time, or the saved one if that had more of the cores."""
        before, now = self.saved(), self.measure()
        if before is not None and before.is_contended and before.ran_share > now.ran_share:
            return before
        save_measurement(cache_directory(), self.key, now)
        return now

    def time(self, measure: Measure) -> PartTime:
        """Return the saved time, or a fresh one."""
        saved = self.saved()
        if saved is None or measure == "all" or (measure == "contended" and saved.is_contended):
            return self.fresh()
        return saved


@dataclass(frozen=True, slots=True)
class StepProbes:
    """The measurements of a plan's step: its parts, eager or compiled."""

    micro_batch: int
    head: PartProbe
    update: PartProbe
    block: PartProbe | None  # None: a compiled one, which is timed beside an eager one

    def parts(self) -> tuple[PartProbe, ...]:
        """Return the probes of all parts."""
        return tuple(probe for probe in (self.block, self.head, self.update) if probe is not None)

    def are_saved(self) -> bool:
        """Return whether nothing would have to be measured."""
        return all(
            saved is not None and not saved.is_contended
            for saved in (probe.saved() for probe in self.parts())
        )

    def times(self, measure: Measure, block: PartTime | None = None) -> StepTimes:
        """Return the times of the parts, saved or measured now. Raises CompileError.

        `block`: the time of the block, if that is compiled.
        """
        head, update = self.head.time(measure), self.update.time(measure)
        if self.block is not None:
            return StepTimes(self.micro_batch, self.block.time(measure), head, update)
        assert block is not None
        return StepTimes(self.micro_batch, block, head, update)

    def saved_times(self, block: PartTime) -> StepTimes | None:
        """Return the saved times of a compiled step; None unless all parts are saved."""
        head, update = self.head.saved(), self.update.saved()
        if head is None or update is None:
            return None
        return StepTimes(self.micro_batch, block, head, update)

    def forget(self) -> None:
        """Remove what is saved, so that the next run measures again."""
        for probe in self.parts():
            remove_measurement(cache_directory(), probe.key)


def step_probes(facts: Facts, workload: Workload, plan: Plan) -> StepProbes:
    """Return the benchmarks of the parts of the plan's step, in the way that it computes."""
    way = Way(
        micro_batch=plan.micro_batch.value,
        precision=plan.precision.value,
        attention=plan.attention.value,
        loss=plan.loss.value,
        checkpointing=plan.activation_checkpointing.value,
        keep_casts=plan.keep_weight_casts.value,
        threads=plan.threads.value,
        masked=workload.mask_documents,
        lora=workload.lora,
    )
    shape, compiled, optimizer = workload.shape, plan.compile.value, workload.optimizer
    products = plan.matmul_precision.value

    def probe(part: str, measure: Callable[[], PartTime], **arguments: int | str) -> PartProbe:
        def measured() -> PartTime:
            with multiplied_in(products):
                return measure()

        way_of_all = {"precision": way.precision, "keep_casts": str(way.keep_casts)}
        if "native" in (way.attention, way.loss):
            way_of_all["native"] = kernel_source().digest()
        if way.lora is not None:
            way_of_all["lora"] = f"{way.lora.rank} {' '.join(way.lora.targets)}"
        key = measurement_key(
            facts,
            part,
            way.threads,
            **{**way_of_all, "matmul_precision": products, **arguments},
        )
        return PartProbe(key, measured)

    size = {"hidden": shape.hidden_size, "context": shape.context, "micro_batch": way.micro_batch}
    whole = {name: str(value) for name, value in asdict(shape).items()}
    return StepProbes(
        micro_batch=way.micro_batch,
        block=None
        if compiled
        else probe(
            "step: block",
            lambda: time_eager_block(shape, way),
            **size,
            intermediate=shape.intermediate_size,
            heads=shape.num_heads,
            key_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            qk_norm=str(shape.qk_norm),
            chained=str(shape.num_layers > 1),
            attention=way.attention,
            checkpointing=way.checkpointing,
            masked=str(way.masked),
        ),
        head=probe(
            "step: head",
            lambda: time_head(shape, way, compiled=compiled),
            **size,
            vocabulary=shape.vocab_size,
            tied=str(shape.tie_embeddings),
            compiled=str(facts.cxx_compiler) if compiled else "no",
            loss=way.loss,
        ),
        update=probe(
            "step: update",
            lambda: time_update(shape, way, optimizer),
            **whole,
            optimizer=optimizer,
        ),
    )
