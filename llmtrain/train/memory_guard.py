"""Keeping a run within the memory there is: smaller plans while there are any, then the end."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

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
from llmtrain.train.events import Observer
from llmtrain.train.loop import Run, StepReport, training_steps
from llmtrain.train.run_directory.directory import RunDirectory

T = TypeVar("T")
_TOLD = "out of memory"  # the store's key for what a rank that ran out says
_MAKE_ROOM = "close other programs or raise the limit"


class _ShortageError(Exception):
    """Memory will not last for the rest of the step."""

    def __init__(self, answer: MemoryAction) -> None:
        super().__init__(answer.reason)
        self.answer = answer


@dataclass(frozen=True, slots=True)
class _Change:
    """Another plan, from after a step on."""

    after_step: int
    reason: str
    numerics: dict[str, Any]


_TROUBLE = (_ShortageError, *MEMORY_ERRORS)


class MemoryGuard:
    """Looks whether memory lasts, before each step and each micro-batch, and answers if it ran out.

    `changed` is told after which step the plan became another one, once a step by that is done;
    `rescue` saves what there is, before a run ends that cannot do another, and says where it is.
    """

    def __init__(
        self,
        run: Run,
        workload: Workload,
        directory: RunDirectory,
        observe: Observer,
        *,
        changed: Callable[[int], None],
        rescue: Callable[[], Path | None],
    ) -> None:
        self._run = run
        self._workload = workload
        self._directory = directory
        self._observe = observe
        self._changed = changed
        self._rescue = rescue
        self._watch = MemoryWatch(workload, run.plan)
        self._answer = MemoryAction()
        self._untried: list[_Change] = []
        self._updated_after_step: int | None = None
        self.is_over = False
        run.optimizer.register_step_pre_hook(self._note_update)
        if run.world.size == 1:  # several ranks have to agree, which they do once a step
            run.model.register_forward_pre_hook(self._look_again)

    @property
    def predicted(self) -> MemoryPrediction:
        """The peak by the plan as it is now."""
        return predict(self._workload, self._run.plan)

    def look(self) -> MemoryAction:
        """What this process would do before the next step. The one before is done."""
        self._settle()
        self._answer = self._look_now()
        return self._answer

    def heed(self, smaller: float, stop: float) -> None:
        """What the ranks' answers, each summed over all of them, come to is done."""
        reason = self._answer.reason or "another process is short of memory"
        if stop > 0:
            self.is_over, self._answer = True, MemoryAction(stop=True, reason=reason)
            return_free_memory()  # saving takes some
        elif smaller > 0:
            self._take_smaller(math.ceil(smaller / self._run.world.size), reason)

    def steps(self) -> Iterator[StepReport]:
        """`training_steps`; one that ran out of memory is done again by a smaller plan.

        Raises DoesNotFitError where there is none, where the weights were already being changed,
        and on every rank where there are several.
        """
        while True:
            try:
                yield from training_steps(self._run)
            except _TROUBLE as error:
                answer = self._answer_to(error)
            else:
                return
            self._get_by(answer)  # not above: the error holds on to the tensors of the step

    def within(self, work: Callable[[], T]) -> T:
        """What `work` gives, done again by a smaller plan where it ran out of memory."""
        while True:
            try:
                return work()
            except _TROUBLE as error:
                answer = self._answer_to(error)
            self._get_by(answer)

    def begin_anew(self) -> None:
        """The run is where it was before, with the weights of that step."""
        self._updated_after_step = None

    def end(self, checkpoint: Path | None) -> None:
        """Nothing; DoesNotFitError where memory ended the run, which `checkpoint` holds."""
        if not self.is_over:
            return
        what = f"stopped before memory ran out: {self._answer.reason}"
        if checkpoint is None:
            raise DoesNotFitError(f"{what}; no step was done", hint=self._what_to_change())
        hint = f"{_MAKE_ROOM}, then --resume auto goes on"
        raise DoesNotFitError(f"{what}; saved {checkpoint}", hint=hint)

    def _look_again(self, *_: object) -> None:
        """Before each micro-batch: in a long step others may take much."""
        answer = self._look_now()
        if answer.smaller or answer.stop:
            raise _ShortageError(answer)

    def _look_now(self) -> MemoryAction:
        return self._watch.look(self._run.plan, self._run.position.step)

    def _answer_to(self, error: BaseException) -> MemoryAction:
        """What this process does after it. Raises `error`, or DoesNotFitError for another rank."""
        if isinstance(error, _ShortageError):
            return error.answer
        problem, store = out_of_memory(error), self._run.world.store
        if problem is not None:
            return MemoryAction(
                smaller=1, reason=f"{problem} in step {self._run.position.step + 1}"
            )
        if store is not None and store.check([_TOLD]):
            raise DoesNotFitError(store.get(_TOLD).decode(), hint=self._what_to_set()) from error
        raise error

    def _get_by(self, answer: MemoryAction) -> None:
        """The run is as before the step, and its plan is smaller. Raises DoesNotFitError."""
        run = self._run
        self._forget_step()
        if run.world.store is not None:
            with_what = f"with micro-batch {run.plan.micro_batch.value}"
            message = f"rank {run.world.rank}: {answer.reason} {with_what}"
            run.world.store.set(_TOLD, message)  # for ranks that will only see this one leave
            raise DoesNotFitError(message, hint=self._what_to_set())
        if self._updated_after_step == run.position.step:
            raise DoesNotFitError(
                f"{answer.reason}, while the weights were being changed: they are of no step",
                hint=f"{_MAKE_ROOM}, then --resume auto goes on from the last checkpoint",
            )
        if answer.stop:
            self.is_over, self._answer = True, answer
            self.end(self._rescue())
        if not self._take_smaller(answer.smaller, answer.reason):
            self._rescue()
            raise DoesNotFitError(
                f"{answer.reason}, with one sequence of {run.context} tokens at once and "
                "everything computed again that can be",
                hint=self._what_to_change(),
            )

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

    def _take_smaller(self, number: int, reason: str) -> bool:
        """The run goes on by a plan so many times smaller, if there is one, and says why."""
        run = self._run
        before = plan = run.plan
        for _ in range(number):
            plan = smaller_plan(plan, reason) or plan
        if plan is before:
            return False
        run.plan = plan
        if _ways(plan) != _ways(before):
            run.model.compute_with(
                attention=plan.attention.value,
                checkpointing=plan.activation_checkpointing.value,
                casts=run.model.casts,
                compiled=plan.compile.value,
            )
        return_free_memory()
        self._untried.append(_Change(run.position.step, reason, plan.numerics()))
        if run.world.is_main:
            self._observe(Note(f"{reason}; from here on {_told(plan)}", is_warning=True))
        return True

    def _settle(self) -> None:
        """A plan by which a step was done is the run's, for a resume too.

        Where even the smallest did not get through one, a resume that has more room begins again
        with the largest.
        """
        if not self._untried:
            return
        self._changed(self._untried[0].after_step)
        if self._run.world.is_main:
            self._record()
        self._untried.clear()

    def _record(self) -> None:
        """run.yaml has the plan, and when and why it changed."""
        record = self._directory.read_record()
        *before, session = record["sessions"]
        changes = [*session.get("changes", []), *(asdict(change) for change in self._untried)]
        now = {
            "plan": self._run.plan.document(),
            "predicted": self.predicted.items(),
            "sessions": [*before, session | {"changes": changes}],
        }
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
