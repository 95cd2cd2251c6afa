"""Benchmark the parts of a training step on this machine, once for each way to compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

from llmtrain.choice import MatmulPrecision
from llmtrain.machine.facts import Facts, PartTime, StepTimes
from llmtrain.machine.measurement_cache import measurement_key
from llmtrain.model.step_timing import (
    Way,
    forget_memory,
    time_chained_block,
    time_head,
    time_update,
)
from llmtrain.model.timing import multiplied_in
from llmtrain.ops.native.library import kernel_source
from llmtrain.ops.triton import source_digest
from llmtrain.plan.planner import Plan
from llmtrain.plan.probe import Measure, PartProbe, block_arguments, lora_argument
from llmtrain.plan.workload import Workload

_UPDATE = "step: update"


@dataclass(frozen=True, slots=True)
class StepProbes:
    """The measurements of a plan's step: its parts, eager or compiled."""

    micro_batch: int
    head: PartProbe
    update: PartProbe
    block: PartProbe | None  # None: a CPU's compiled one, which is timed beside an eager one

    def parts(self) -> tuple[PartProbe, ...]:
        """Return the probes of all parts."""
        return tuple(probe for probe in (self.block, self.head, self.update) if probe is not None)

    def have(self, measure: Measure) -> bool:
        """Return whether nothing would have to be measured."""
        return all(probe.has(measure) for probe in self.parts())

    def failure(self) -> str | None:
        """Return the saved reason why a part cannot be computed here; None: there is none."""
        return next(filter(None, (probe.failure() for probe in self.parts())), None)

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
            probe.forget()


def step_probes(facts: Facts, workload: Workload, plan: Plan) -> StepProbes:
    """Return the benchmarks of the parts of the plan's step, in the way that it computes."""
    products = plan.matmul_precision.value
    return _WayProbes(facts, workload, way_of(workload, plan), products).step(plan.compile.value)


def way_of(workload: Workload, plan: Plan) -> Way:
    """Return the decisions of the plan that the times of its step depend on."""
    return Way(
        micro_batch=plan.micro_batch.value,
        precision=plan.precision.value,
        attention=plan.attention.value,
        loss=plan.loss.value,
        checkpointing=plan.activation_checkpointing.value,
        keep_casts=plan.keep_weight_casts.value,
        threads=plan.threads.value,
        masked=workload.mask_documents,
        lora=workload.lora,
        preferences=workload.is_dpo,
        device=plan.device.value,
        block_kernels=plan.block_kernels.value,
        compiled_block=plan.compile.value and plan.device.value != "cpu",
        accumulates=plan.accumulation.value > 1,
    )


@dataclass(frozen=True, slots=True)
class _WayProbes:
    """The probes of all parts for one way to compute."""

    facts: Facts
    workload: Workload
    way: Way
    products: MatmulPrecision

    def step(self, compiled: bool) -> StepProbes:
        """Return the probes of an eager or a compiled step."""
        return StepProbes(
            micro_batch=self.way.micro_batch,
            block=None if compiled and self.way.device == "cpu" else self.block(),
            head=self.head(compiled),
            update=self.update(),
        )

    def block(self) -> PartProbe:
        shape, way = self.workload.shape, self.way
        return self._probe(
            "step: block",
            lambda: time_chained_block(shape, way),
            **block_arguments(shape),
            micro_batch=way.micro_batch,
            chained=str(shape.num_layers > 1),
            attention=way.attention,
            checkpointing=way.checkpointing,
            masked=str(way.masked),
            **self._kernels(),
        )

    def _kernels(self) -> dict[str, str]:
        """Return by what a block is computed; on a CPU only where it is not by torch's kernels."""
        if self.way.device == "cpu":
            return {"kernels": "native"} if self.way.block_kernels == "native" else {}
        return {"kernels": self.way.block_kernels, "compiled": str(self.way.compiled_block)}

    def head(self, compiled: bool) -> PartProbe:
        shape, way = self.workload.shape, self.way
        return self._probe(
            "step: head",
            lambda: time_head(shape, way, compiled=compiled),
            hidden=shape.hidden_size,
            context=shape.context,
            micro_batch=way.micro_batch,
            vocabulary=shape.vocab_size,
            tied=str(shape.tie_embeddings),
            compiled=str(self.facts.cxx_compiler) if compiled else "no",
            loss=way.loss,
            **({"rows": "preferences"} if way.preferences else {}),
            **self._native(),
        )

    def _native(self) -> dict[str, str]:
        """Return what the last norm and the update are computed by, if not by torch's kernels."""
        return {"kernels": "native"} if self.way.block_kernels == "native" else {}

    def update(self) -> PartProbe:
        shape, way, optimizer = self.workload.shape, self.way, self.workload.optimizer
        whole = {name: str(value) for name, value in asdict(shape).items()}
        return self._probe(
            _UPDATE,
            lambda: time_update(shape, way, optimizer),
            **whole,
            optimizer=optimizer,
            **self._native(),
        )

    def _probe(
        self, part: str, measure: Callable[[], PartTime], **arguments: int | str
    ) -> PartProbe:
        way = self.way

        def measured() -> PartTime:
            try:
                with multiplied_in(self.products):
                    return measure()
            finally:
                forget_memory(way.device)

        arguments |= {
            "precision": way.precision,
            "keep_casts": str(way.keep_casts),
            "matmul_precision": self.products,
        }
        if "native" in (way.attention, way.loss, way.block_kernels):
            arguments["native"] = kernel_source(way.precision).digest()
        if "triton" in (way.block_kernels, way.loss):
            arguments["triton"] = source_digest()
        if way.accumulates and part != _UPDATE:
            arguments["accumulates"] = "yes"
        if way.lora is not None:
            arguments["lora"] = lora_argument(way.lora)
        if way.device != "cpu":
            gpus = self.facts.of_kind("cuda" if way.device == "cuda" else "mps")
            arguments["device"] = gpus[0].name
        return PartProbe(
            measurement_key(self.facts, part, way.threads, **arguments), PartTime, measured
        )
