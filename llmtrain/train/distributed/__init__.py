"""Several processes: ranks, their launcher, failures and signals."""
