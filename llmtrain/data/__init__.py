"""From text in files to batches of token ids.

sources        specs → corpus: files, directories, globs, URLs, buckets, hub data sets, stdin
formats        the format of a file and its documents; archives and compression
reading        file → documents, strict UTF-8
quality        filters, duplicates and near duplicates; leakage and surveys change nothing
split          documents → training and validation parts
shards         corpus + tokenizer → token shards in the cache, and tokens at any position
batches        positions → inputs and targets: order, packing, mixture, prefetching
"""
