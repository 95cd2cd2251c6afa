"""A benchmark that is run once: what it measures, and the key that the times are cached under."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal

from llmtrain.files import cache_directory
from llmtrain.machine.facts import PartTime
from llmtrain.machine.measurement_cache import (
    MeasurementKey,
    T,
    load_failure,
    load_measurement,
    remove_measurement,
    save_failure,
    save_measurement,
)
from llmtrain.model.timing import KernelError
from llmtrain.profile.lora_shape import LoraShape
from llmtrain.profile.shape import ModelShape

# What is measured although it was before: nothing, what shared its cores, or everything.
Measure = Literal["missing", "contended", "all"]


@dataclass(frozen=True, slots=True)
class Probe(Generic[T]):
    """A measurement, and the key that it is saved under."""

    key: MeasurementKey
    kind: type[T]
    measure: Callable[[], T]
    is_complete: Callable[[T], bool] = lambda _: True

    def saved(self) -> T | None:
        """Return the saved times; None where there are none, or not all that are wanted."""
        found = load_measurement(cache_directory(), self.key, self.kind)
        return found if found is not None and self.is_complete(found) else None

    def fresh(self) -> T:
        """Measure now, save and return the times."""
        times = self.measure()
        save_measurement(cache_directory(), self.key, times)
        return times

    def forget(self) -> None:
        """Remove the saved times, so that the next run measures again."""
        remove_measurement(cache_directory(), self.key)

    def times(self) -> T:
        """Return the saved times, or fresh ones."""
        saved = self.saved()
        return self.fresh() if saved is None else saved


@dataclass(frozen=True, slots=True)
class PartProbe(Probe[PartTime]):
    """The benchmark of a part of a step.

    A time that shared its cores with other programs is cached as such: the next run that begins
    measures again, and the time with the most of the cores stays. So is the failure of a kernel,
    which would take as long to compile each time, to fail again.
    """

    def failure(self) -> str | None:
        """Return why a kernel of this part cannot run here, as an earlier measurement found."""
        return load_failure(cache_directory(), self.key)

    def fresh(self) -> PartTime:
        """Measure now; return and save the time, or the saved one if that had more of the cores.

        Raises KernelError, having saved it.
        """
        before = self.saved()
        try:
            now = self.measure()
        except KernelError as error:
            save_failure(cache_directory(), self.key, error.message)
            raise
        if before is not None and before.is_contended and before.ran_share > now.ran_share:
            return before
        save_measurement(cache_directory(), self.key, now)
        return now

    def has(self, measure: Measure) -> bool:
        """Return whether nothing would have to be measured."""
        saved = self.saved()
        if saved is None or measure == "all":
            return False
        return measure == "missing" or not saved.is_contended

    def time(self, measure: Measure) -> PartTime:
        """Return the saved time, or a fresh one."""
        saved = self.saved()
        return saved if saved is not None and self.has(measure) else self.fresh()


def block_arguments(shape: ModelShape) -> dict[str, int | str]:
    """Return the sizes that the time of a block depends on, as arguments of a key."""
    return {
        "hidden": shape.hidden_size,
        "intermediate": shape.intermediate_size,
        "heads": shape.num_heads,
        "key_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "qk_norm": str(shape.qk_norm),
        "context": shape.context,
    }


def lora_argument(lora: LoraShape) -> str:
    """Return adapters as an argument of a key."""
    return f"{lora.rank} {' '.join(lora.targets)}"
