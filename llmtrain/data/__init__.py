"""From text on disk to batches of token ids.

sources   specs → corpus           which files there are
reading   file → documents         strict UTF-8, JSON lines, gzip
split     documents → train and validation
shards    corpus + tokenizer → token shards in the cache
stream    shards → tokens at any position
order     position → window        a stateless permutation
batches   positions → inputs and targets
packing   documents whole in windows, instead of the text cut into them
prefetch  the same, read ahead in a thread
"""
