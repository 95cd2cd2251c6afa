"""Send a run's metrics to a tracker, which can neither stop, slow nor change the run."""
