"""From shards to batches: windows, permutation, packing, mixtures."""
