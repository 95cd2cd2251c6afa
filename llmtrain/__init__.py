"""Train a language model from scratch on the machine you have."""

__version__ = "0.2.0"
