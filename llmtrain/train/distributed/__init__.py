"""Several processes: ranks, launching, failures, signals."""
