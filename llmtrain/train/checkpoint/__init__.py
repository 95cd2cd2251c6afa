"""Checkpoints: their format, writing them, and saving beside training."""
