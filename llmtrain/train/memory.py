"""Keeping a run within the memory there is: smaller plans while there are any, then the end."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import torch

from llmtrain.device.allocator import return_free_memory
from llmtrain.device.choice import Needs
from llmtrain.device.exhaustion import MEMORY_ERRORS, out_of_memory
from llmtrain.device.memory import MemoryPrediction
from llmtrain.device.plan import Plan, predict
from llmtrain.device.pressure import Answer
from llmtrain.device.smaller import smaller_plan
from llmtrain.device.watch import MemoryWatch
from llmtrain.errors import DoesNotFitError
from llmtrain.train.events import Note, Observer
from llmtrain.train.loop import Run, StepReport, training_steps
from llmtrain.train.rundir import RunDirectory

T = TypeVar("T")
_TOLD = "out of memory"  # the store's key for what a rank that ran out says
_MAKE_ROOM = "close other programs or raise the limit"


class MemoryGuard:
    """Looks before each step whether memory lasts, and answers where it ran out.

    `changed` is called when `run.plan` is another one; `rescue` saves what there is, before a run
    ends that cannot do another step.
    """

    def __init__(
        self,
        run: Run,
        needs: Needs,
        directory: RunDirectory,
        observe: Observer,
        *,
        changed: Callable[[], None],
        rescue: Callable[[], None],
    ) -> None:
        self._run = run
        self._needs = needs
        self._directory = directory
        self._observe = observe
        self._changed = changed
        self._rescue = rescue
        self._watch = MemoryWatch(needs, run.plan)
        self._answer = Answer()
        self._updated_after_step: int | None = None
        self.is_over = False
        run.optimizer.register_step_pre_hook(self._note_update)

    @property
    def predicted(self) -> MemoryPrediction:
        """The peak by the plan as it is now."""
        return predict(self._needs, self._run.plan)

    def look(self) -> Answer:
        """What this process would do before the next step."""
        self._answer = self._watch.look(self._run.plan)
        return self._answer

    def heed(self, smaller: float, stop: float) -> None:
        """What the ranks' answers, each summed over all of them, come to is done."""
        reason = self._answer.reason or "another process is short of memory"
        if stop > 0:
            self.is_over, self._answer = True, Answer(stop=True, reason=reason)
            return_free_memory()  # saving takes some
            return
        for _ in range(math.ceil(smaller / self._run.world.size)):
            plan = smaller_plan(self._run.plan, reason)
            if plan is not None:
                self._take(plan, reason)

    def steps(self) -> Iterator[StepReport]:
        """`training_steps`; one that ran out of memory is done again by a smaller plan.

        Raises DoesNotFitError where there is none, where the weights were already being changed,
        and on every rank where there are several.
        """
        while True:
            try:
                yield from training_steps(self._run)
            except MEMORY_ERRORS as error:
                problem = self._problem(error)
            else:
                return
            self._get_by(problem)  # not above: the error holds on to the tensors of the step

    def within(self, work: Callable[[], T]) -> T:
        """What `work` gives, done again by a smaller plan where it ran out of memory."""
        while True:
            try:
                return work()
            except MEMORY_ERRORS as error:
                problem = self._problem(error)
            self._get_by(problem)

    def end(self, checkpoint: Path | None) -> None:
        """Nothing; DoesNotFitError where memory ended the run, which `checkpoint` holds."""
        if not self.is_over:
            return
        what = f"stopped before memory ran out: {self._answer.reason}"
        if checkpoint is None:
            raise DoesNotFitError(f"{what}; no step was done", hint=self._what_to_change())
        hint = f"{_MAKE_ROOM}, then --resume auto goes on"
        raise DoesNotFitError(f"{what}; saved {checkpoint}", hint=hint)

    def _problem(self, error: BaseException) -> str:
        """What this rank ran out of. Raises DoesNotFitError for another rank, else the error."""
        problem, store = out_of_memory(error), self._run.world.store
        if problem is not None:
            return problem
        if store is not None and store.check([_TOLD]):
            raise DoesNotFitError(store.get(_TOLD).decode(), hint=self._what_to_set()) from error
        raise error

    def _get_by(self, problem: str) -> None:
        """A smaller plan is taken, and the run is as before the step. Raises DoesNotFitError."""
        run = self._run
        self._forget_step()
        step, micro_batch = run.position.step, run.plan.micro_batch.value
        reason = f"{problem} in step {step + 1}"
        if run.world.store is not None:
            message = f"rank {run.world.rank}: {reason} with micro-batch {micro_batch}"
            run.world.store.set(_TOLD, message)  # for ranks that will only see this one leave
            raise DoesNotFitError(message, hint=self._what_to_set())
        if self._updated_after_step == step:
            raise DoesNotFitError(
                f"{reason}, while the weights were being changed: they are of no step",
                hint=f"{_MAKE_ROOM}, then --resume auto goes on from the last checkpoint",
            )
        plan = smaller_plan(run.plan, reason)
        if plan is None:
            self._rescue()
            raise DoesNotFitError(
                f"{reason}, with one sequence of {run.context} tokens at once and everything "
                "computed again that can be",
                hint=self._what_to_change(),
            )
        self._take(plan, reason)

    def _forget_step(self) -> None:
        """No gradient is left, and what was freed is the system's."""
        run = self._run
        run.optimizer.zero_grad()
        if run.scaler.is_enabled():  # one that unscaled gradients refuses to do it again
            fresh = torch.amp.GradScaler(run.device.type)
            fresh.load_state_dict(run.scaler.state_dict())
            run.scaler = fresh
        gc.collect()
        return_free_memory()

    def _take(self, plan: Plan, reason: str) -> None:
        """The run goes on by `plan`, and whoever asks knows why."""
        run = self._run
        is_computed_alike = _ways(plan) == _ways(run.plan)
        run.plan = plan
        if not is_computed_alike:
            run.model.compute_with(
                attention=plan.attention.value,
                checkpointing=plan.activation_checkpointing.value,
                casts=run.model.casts,
                compiled=plan.compile.value,
            )
        return_free_memory()
        self._changed()
        if run.world.is_main:
            self._record(reason)
            self._observe(Note(f"{reason}; from here on {_told(plan)}", is_warning=True))

    def _record(self, reason: str) -> None:
        """run.yaml has the plan, so that a resume keeps it, and when and why it changed."""
        plan, record = self._run.plan, self._directory.read_record()
        change = {"after_step": self._run.position.step, "reason": reason}
        sitting = record["sittings"][-1]
        changes = [*sitting.get("changes", []), change | {"numerics": plan.numerics()}]
        sittings = [*record["sittings"][:-1], sitting | {"changes": changes}]
        now = {"plan": plan.document(), "predicted": self.predicted.items(), "sittings": sittings}
        self._directory.write_record(record | now)

    def _note_update(self, *_: object) -> None:
        self._updated_after_step = self._run.position.step

    def _what_to_set(self) -> str:
        """The smaller plan as settings, for several ranks, which do not change it by themselves."""
        now, plan = self._run.plan, smaller_plan(self._run.plan, "")
        if plan is None:
            return self._what_to_change()
        if plan.micro_batch.value < now.micro_batch.value:
            return f"--resume auto --set train.micro_batch={plan.micro_batch.value}"
        return "--resume auto --set device.activation_checkpointing=full"

    def _what_to_change(self) -> str:
        smaller = f"a smaller profile, or --set model.context={max(8, self._run.context // 2)}"
        return f"{_MAKE_ROOM}, then --resume auto; or begin anew with {smaller}"


def _ways(plan: Plan) -> tuple[object, object]:
    return plan.activation_checkpointing.value, plan.compile.value


def _told(plan: Plan) -> str:
    return (
        f"micro-batch {plan.micro_batch.value} × {plan.accumulation.value}, activation "
        f"checkpointing {plan.activation_checkpointing.value}"
    )
