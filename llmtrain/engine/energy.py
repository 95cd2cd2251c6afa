"""What a training's joules were, where the machine counts them."""

from __future__ import annotations

from dataclasses import replace

from llmtrain.machine.energy import Counter, EnergyMeter, gpu_counters, package_counters
from llmtrain.train.events import TrainResult
from llmtrain.train.trainer import Trainer


def trained_with_energy(trainer: Trainer) -> TrainResult:
    """The trainer's result, with what this machine's CPU packages and the run's GPUs here used.

    Whatever else ran on them is in it.
    """
    with EnergyMeter(_counters(trainer)).watching() as meter:
        result = trainer.train()
        return replace(result, energy_joules=meter.joules())


def _counters(trainer: Trainer) -> list[Counter]:
    world, kind = trainer.run.world, trainer.run.device.type
    if not world.is_main:
        return []
    gpus = range(world.local_size) if kind == "cuda" else ()
    return [*package_counters(), *gpu_counters(gpus)]
