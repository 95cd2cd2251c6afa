"""`llmtrain memory`: in use now, watched, or predicted for a profile."""
