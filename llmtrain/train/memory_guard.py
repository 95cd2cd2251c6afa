"""Keep a run within memory: smaller plans while there are any, then stop before the kernel kills.

Checked before each step and, in a single process, before each micro-batch.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from llmtrain.errors import DoesNotFitError
from llmtrain.machine.allocator import return_free_memory
from llmtrain.machine.memory_pressure import MemoryAction
from llmtrain.machine.out_of_memory import MEMORY_ERRORS, out_of_memory
from llmtrain.plan.memory import MemoryPrediction
from llmtrain.plan.memory_watch import MemoryWatch
from llmtrain.plan.planner import Plan, predict
from llmtrain.plan.smaller import smaller_plan
from llmtrain.plan.workload import Workload
from llmtrain.progress import Note
from llmtrain.train.build import compute_as_planned
from llmtrain.train.events import Observer
from llmtrain.train.loop import Run, StepReport, training_steps
from llmtrain.train.run_directory.directory import RunDirectory

T = TypeVar("T")
_STORE_KEY = "out of memory"  # where a rank that ran out leaves its message
_FREE_MEMORY = "close other programs or raise the limit"


class MemoryStopError(DoesNotFitError):
    """Memory ends the run; the weights are those of the last step, which can still be saved."""


class _ShortageError(Exception):
    """Memory will not suffice for the rest of the step."""

    def __init__(self, action: MemoryAction) -> None:
        super().__init__(action.reason)
        self.action = action


@dataclass(frozen=True, slots=True)
class _PlanChange:
    """Another plan, from after a step on; an entry of `changes` in run.yaml."""

    after_step: int
    reason: str
    numerics: dict[str, Any]


_CAUGHT = (_ShortageError, *MEMORY_ERRORS)


def agreed_action(own: MemoryAction, smaller: float, stop: float, ranks: int) -> MemoryAction:
    """Return what all ranks do, from the sums over ranks of `smaller` and `stop`.

    The reason is this rank's own.
    """
    reason = own.reason or "another process is short of memory"
    return MemoryAction(math.ceil(smaller / ranks), stop > 0, reason)


class MemoryGuard:
    """Replaces a run's plan by smaller ones while memory is short; `observe` gets the reasons."""

    def __init__(
        self, run: Run, workload: Workload, directory: RunDirectory, observe: Observer
    ) -> None:
        self._run = run
        self._workload = workload
        self._directory = directory
        self._observe = observe
        self._watch = MemoryWatch(workload, run.plan)
        self._unconfirmed: list[_PlanChange] = []
        self._updated_after_step: int | None = None
        self._stop_reason: str | None = None
        run.optimizer.register_step_pre_hook(self._note_update)
        if run.world.size == 1:  # several ranks have to agree, which they do once per step
            run.model.register_forward_pre_hook(self._check_micro_batch)

    @property
    def predicted(self) -> MemoryPrediction:
        """The predicted peak by the current plan."""
        return predict(self._workload, self._run.plan)

    def check(self) -> MemoryAction:
        """Return what memory requires of this process before the next step."""
        return self._watch.check(self._run.plan, self._run.position.step)

    def apply(self, action: MemoryAction) -> None:
        """Apply what all ranks agreed on, between two steps."""
        if action.stop:
            self._stop_reason = action.reason
            return_free_memory()  # saving needs some
        elif action.smaller:
            self._take_smaller_plan(action.smaller, action.reason)

    def confirm_changes(self) -> int | None:
        """Record the plan changes by which a step was now done; return the step before the first.

        Returns None if there are none. A plan that completed no step is not recorded: a resume
        with more memory starts with the largest again.
        """
        if not self._unconfirmed:
            return None
        changes, self._unconfirmed = self._unconfirmed, []
        if self._run.world.is_main:
            self._record(changes)
        return changes[0].after_step

    def steps(self) -> Iterator[StepReport]:
        """Yield from `training_steps`; repeat a step that ran out of memory by a smaller plan.

        Raises MemoryStopError without a smaller plan, and DoesNotFitError if the update was
        interrupted or there are several ranks.
        """
        while True:
            try:
                yield from training_steps(self._run)
            except _CAUGHT as error:
                action = self._action_after(error)
            else:
                return
            self._recover(action)  # not above: the error keeps the tensors of the step alive

    def run_guarded(self, work: Callable[[], T]) -> T:
        """Return what `work` returns; repeat it by a smaller plan if it runs out of memory."""
        while True:
            try:
                return work()
            except _CAUGHT as error:
                action = self._action_after(error)
            self._recover(action)

    def reset(self) -> None:
        """Forget the last update: the run was rewound."""
        self._updated_after_step = None

    def raise_if_stopped(self, checkpoint: Path | None) -> None:
        """Raise DoesNotFitError if memory ended the run, naming the last `checkpoint`."""
        if self._stop_reason is None:
            return
        message = f"stopped before memory ran out: {self._stop_reason}"
        if checkpoint is None:
            raise DoesNotFitError(f"{message}; no step was done", hint=self._smaller_model())
        hint = f"{_FREE_MEMORY}, then --resume auto continues"
        raise DoesNotFitError(f"{message}; saved {checkpoint}", hint=hint)

    def _check_micro_batch(self, *_: object) -> None:
        """Raise _ShortageError: during a long step other programs may take much."""
        action = self.check()
        if action.smaller or action.stop:
            raise _ShortageError(action)

    def _action_after(self, error: BaseException) -> MemoryAction:
        """Return the action for a memory error.

        Raises any other error as it is, or DoesNotFitError if another rank ran out of memory.
        """
        if isinstance(error, _ShortageError):
            return error.action
        problem, store = out_of_memory(error), self._run.world.store
        if problem is not None:
            reason = f"{problem} in step {self._run.position.step + 1}"
            return MemoryAction(smaller=1, reason=reason)
        if store is not None and store.check([_STORE_KEY]):
            message = store.get(_STORE_KEY).decode()
            raise DoesNotFitError(message, hint=self._smaller_settings()) from error
        raise error

    def _recover(self, action: MemoryAction) -> None:
        """Restore the state before the step and take a smaller plan; raise if there is none."""
        run = self._run
        self._discard_step()
        if run.world.store is not None:
            message = (
                f"rank {run.world.rank}: {action.reason} "
                f"with micro-batch {run.plan.micro_batch.value}"
            )
            run.world.store.set(_STORE_KEY, message)  # the others only see this rank leave
            raise DoesNotFitError(message, hint=self._smaller_settings())
        if self._updated_after_step == run.position.step:
            raise DoesNotFitError(
                f"{action.reason}; the update was interrupted, so the weights are inconsistent",
                hint=f"{_FREE_MEMORY}, then --resume auto continues from the last checkpoint",
            )
        if action.stop:
            self._stop_reason = action.reason
            raise MemoryStopError(action.reason)
        if not self._take_smaller_plan(action.smaller, action.reason):
            raise MemoryStopError(
                f"{action.reason}, although the micro-batch is one sequence of {run.context} "
                "tokens and activation checkpointing is full",
                hint=self._smaller_model(),
            )

    def _discard_step(self) -> None:
        """Drop the gradients and return freed memory to the system."""
        run = self._run
        run.optimizer.zero_grad()
        if run.scaler.is_enabled():  # it refuses to unscale a second time before an update
            fresh = type(run.scaler)(run.device.type)
            fresh.load_state_dict(run.scaler.state_dict())
            run.scaler = fresh
        gc.collect()
        return_free_memory()

    def _take_smaller_plan(self, number: int, reason: str) -> bool:
        """Make the plan `number` times smaller as far as possible; return whether it changed."""
        run = self._run
        before = plan = run.plan
        for _ in range(number):
            plan = smaller_plan(plan, reason) or plan
        if plan is before:
            return False
        run.plan = plan
        if _modes(plan) != _modes(before):
            compute_as_planned(run.model, plan)
        return_free_memory()
        self._unconfirmed.append(_PlanChange(run.position.step, reason, plan.numerics()))
        if run.world.is_main:
            self._observe(Note(f"{reason}; from here on {_describe(plan)}", is_warning=True))
        return True

    def _record(self, changes: list[_PlanChange]) -> None:
        """Write the plan to run.yaml, and when and why it changed."""
        record = self._directory.read_record()
        *earlier, session = record["sessions"]
        recorded = [*session.get("changes", []), *(asdict(change) for change in changes)]
        update = {
            "plan": self._run.plan.document(),
            "predicted": self.predicted.items(),
            "sessions": [*earlier, session | {"changes": recorded}],
        }
        self._directory.write_record(record | update)

    def _note_update(self, *_: object) -> None:
        self._updated_after_step = self._run.position.step

    def _smaller_settings(self) -> str:
        """Return the next smaller plan as options: several ranks do not change theirs."""
        plan, smaller = self._run.plan, smaller_plan(self._run.plan, "")
        if smaller is None:
            return self._smaller_model()
        if smaller.micro_batch.value < plan.micro_batch.value:
            return f"--resume auto --set train.micro_batch={smaller.micro_batch.value}"
        return "--resume auto --set device.activation_checkpointing=full"

    def _smaller_model(self) -> str:
        smaller = f"a smaller profile, or --set model.context={max(8, self._run.context // 2)}"
        return f"{_FREE_MEMORY}, then --resume auto; or start a new run with {smaller}"


def _modes(plan: Plan) -> tuple[object, object]:
    return plan.activation_checkpointing.value, plan.compile.value


def _describe(plan: Plan) -> str:
    return (
        f"micro-batch {plan.micro_batch.value} × {plan.accumulation.value}, activation "
        f"checkpointing {plan.activation_checkpointing.value}"
    )
