"""Checkpoints: their format, atomic writing, and saving in the background of training."""
