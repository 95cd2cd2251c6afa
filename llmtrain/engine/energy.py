"""Measure the energy of a training session, on machines with energy counters."""

from __future__ import annotations

from dataclasses import replace

from llmtrain.machine.energy import Counter, EnergyMeter, gpu_counters, package_counters
from llmtrain.train.events import TrainResult
from llmtrain.train.trainer import Session


def trained_with_energy(session: Session) -> TrainResult:
    """Train, and return the result with the energy of the CPU packages and of the run's GPUs.

    The counters include what other programs use.
    """
    with EnergyMeter(_counters(session)).watching() as meter:
        result = session.train()
        return replace(result, energy_joules=meter.joules())


def _counters(session: Session) -> list[Counter]:
    world, kind = session.run.world, session.run.device.type
    if not world.is_main:
        return []
    gpus = range(world.local_size) if kind == "cuda" else ()
    return [*package_counters(), *gpu_counters(gpus)]
