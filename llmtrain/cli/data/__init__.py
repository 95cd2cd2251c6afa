"""`llmtrain data`: inspect text, prepare it, and manage the cache."""
