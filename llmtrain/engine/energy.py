"""Measure the energy of a training session, on machines with energy counters."""

from __future__ import annotations

from dataclasses import replace

from llmtrain.machine.energy import Counter, EnergyMeter, gpu_counters, package_counters
from llmtrain.train.events import TrainResult
from llmtrain.train.trainer import Trainer


def trained_with_energy(trainer: Trainer) -> TrainResult:
    """Train, and return the result with the energy of the CPU packages and of the run's GPUs.

    The counters include what other programs use.
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
