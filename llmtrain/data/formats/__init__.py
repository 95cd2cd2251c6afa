"""What is in a file, by its name: an archive of files, packed or not, each in some format.

naming       a name → archive, compression and format, or why there is no text
streams      bytes that say where they are bad, and end where a bomb would go on
compression  .gz .bz2 .xz .zst
archives     .zip .tar
text         a text, or a very long one in parts
records      the text field of a record, and what is said where there is none
json_text    .jsonl and .json
table        .csv and .tsv
columns      .parquet, .arrow and .feather, through pyarrow

A format is a function from a stream to documents; `naming` has the table of all of them.
"""
