"""Preparation of a run's text: its tokenizer and token shards, cached."""
