"""From text on disk to batches of token ids.

sources   specs → corpus           which files there are
finding   directory → files        globs; selection has .gitignore, include and exclude
reading   file → documents         strict UTF-8; formats has archives, compressions and formats
cleaning  corpus → corpus          filters, copies, near copies (signatures, near_copies)
split     documents → train and validation
shards    corpus + tokenizer → token shards in the cache
stream    shards → tokens at any position
order     position → window        a stateless permutation
batches   positions → inputs and targets
packing   documents whole in windows, instead of the text cut into them
prefetch  the same, read ahead in a thread

leakage and survey look at a corpus, and change nothing.
"""
