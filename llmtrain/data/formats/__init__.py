"""The format of a file, chosen by its name, and the functions that read it.

registry     file name → format, compression and archive, or why it holds no text
magic        first bytes → the file's real content
streams      bounded byte streams that name the place of a bad byte
compression  .gz .bz2 .xz .zst
archives     .zip .tar
text         plain text; a very long file in parts
records      the text field of a record, and the error if it is missing
json_text    .jsonl and .json
table        .csv and .tsv
columns      .parquet, .arrow and .feather, through pyarrow

A format is a function from a stream to documents; `registry` has the table of all formats.
"""
