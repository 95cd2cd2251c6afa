"""Job files that train a profile on a cluster."""
