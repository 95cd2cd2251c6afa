"""From the text of a run to its tokenizer and token shards, cached."""
