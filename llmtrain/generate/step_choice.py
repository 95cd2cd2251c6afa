"""Choose what computes single tokens: torch, or the step that was compiled for this machine."""

from __future__ import annotations

import time

from llmtrain.choice import Choice
from llmtrain.generate.cached_decoder import CachedDecoder

_STEPS = 5


def choose_step(decoder: CachedDecoder) -> Choice[bool]:
    """Time both on an empty decoder; return whether the compiled step is faster, which is used."""
    torch_s = _fastest_step_s(decoder)
    decoder.compute_natively(True)
    native_s = _fastest_step_s(decoder)
    decoder.compute_natively(native_s < torch_s)
    figures = f"{1e3 * native_s:.1f} ms a token against torch's {1e3 * torch_s:.1f}, measured here"
    faster = "the compiled step is" if native_s < torch_s else "torch is"
    return Choice(native_s < torch_s, f"{faster} faster: {figures}")


def _fastest_step_s(decoder: CachedDecoder) -> float:
    assert decoder.length(0) == 0
    times_s = []
    for _ in range(min(_STEPS, decoder.shape.context)):
        started_s = time.perf_counter()
        decoder.step([0], [0])
        times_s.append(time.perf_counter() - started_s)
    decoder.truncate(0, 0)
    return min(times_s)
