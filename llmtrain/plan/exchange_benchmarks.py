"""Time an exchange between processes of this machine, once."""

from __future__ import annotations

from llmtrain.machine.facts import ExchangeTimes, Facts
from llmtrain.machine.measurement_cache import measurement_key
from llmtrain.model.exchange_timing import time_exchange
from llmtrain.plan.probe import Probe


def exchange_probe(facts: Facts, processes: int) -> Probe[ExchangeTimes]:
    """Return the benchmark of an exchange between so many processes of this machine."""
    key = measurement_key(facts, "exchange", 1, processes=processes, cores=facts.cpu.usable_cores)
    return Probe(key, ExchangeTimes, lambda: time_exchange(processes))
