"""The speeds of GPUs, by data sheets: what a prediction for machines that are not here rests on."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GpuSpeed:
    """A GPU's dense products in bf16 (fp16 where it has no bf16), and its link to others."""

    flops: float
    link_bytes_per_s: float  # one direction: NVLink, or PCIe where there is none


# NVIDIA's data sheets. The longest name that is part of the driver's counts.
SPEEDS: dict[str, GpuSpeed] = {
    "T4": GpuSpeed(65e12, 16e9),
    "V100": GpuSpeed(125e12, 150e9),
    "A10": GpuSpeed(125e12, 32e9),
    "A100": GpuSpeed(312e12, 300e9),
    "L4": GpuSpeed(121e12, 32e9),
    "L40S": GpuSpeed(362e12, 32e9),
    "RTX 4090": GpuSpeed(165e12, 32e9),
    "H100": GpuSpeed(989e12, 450e9),
    "H200": GpuSpeed(989e12, 450e9),
    "B200": GpuSpeed(2250e12, 900e9),
}


def speed_of(name: str) -> GpuSpeed | None:
    """Return the speed of a GPU by a name that has its model's as words; None: unknown."""
    found = [model for model in SPEEDS if re.search(rf"\b{model}\b", name, re.IGNORECASE)]
    return SPEEDS[max(found, key=len)] if found else None
