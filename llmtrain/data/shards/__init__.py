"""Token shards in the cache."""
