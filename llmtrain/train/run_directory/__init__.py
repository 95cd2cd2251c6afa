"""The run directory: what is where, and what run.yaml says."""
