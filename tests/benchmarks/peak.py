"""How many floating-point operations a second this machine's matrix products reach at best."""

from __future__ import annotations

import time

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.benchmarks.documents import PeakJob, Peaks

_LEAST_REPEATS = 3
_PRODUCT_S = 0.4  # for each product
_BUDGET_S = 4.0  # for each type; where bf16 is emulated the dear products are never begun


def measure_peaks(job: PeakJob) -> Peaks:
    """The best of the job's linear layers, forward, in bf16 and in fp32."""
    torch.set_num_threads(job.threads)
    with torch.inference_mode():
        return Peaks(
            bf16_flops=_best_flops(job, torch.bfloat16), fp32_flops=_best_flops(job, torch.float32)
        )


def _best_flops(job: PeakJob, dtype: torch.dtype) -> float:
    begun_s, best = time.perf_counter(), 0.0
    for rows, width_in, width_out in job.products:
        x = torch.rand(rows, width_in).sub_(0.5).to(dtype)
        weight = torch.rand(width_out, width_in).sub_(0.5).to(dtype)
        best = max(best, 2 * rows * width_in * width_out / _best_s(x, weight))
        if time.perf_counter() - begun_s > _BUDGET_S:
            break
    return best


def _best_s(x: Tensor, weight: Tensor) -> float:
    begun_s, best_s, repeats = time.perf_counter(), float("inf"), 0
    while repeats < _LEAST_REPEATS or time.perf_counter() - begun_s < _PRODUCT_S:
        start_s = time.perf_counter()
        F.linear(x, weight)
        best_s = min(best_s, time.perf_counter() - start_s)
        repeats += 1
    return best_s
