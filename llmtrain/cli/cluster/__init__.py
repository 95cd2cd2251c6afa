"""`llmtrain cluster`."""
