"""Batches cut from token shards: windows, permutation, packing, mixtures."""
