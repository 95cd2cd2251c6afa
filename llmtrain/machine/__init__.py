"""This machine: what is there, how fast it is, and what of its memory is in use."""
