"""From facts, options and a workload to a plan: decisions with reasons, memory, time."""
