"""The run directory: its files, and the contents of run.yaml."""
