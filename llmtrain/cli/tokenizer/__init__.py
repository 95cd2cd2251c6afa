"""`llmtrain tokenizer`: train, import, use and inspect tokenizers."""
