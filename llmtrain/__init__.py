"""Train a language model from scratch on the machine you have."""

__version__ = "0.2.0"
SCHEMA_VERSION = 2  # of documents: docs/reference/json.md says what raises it
