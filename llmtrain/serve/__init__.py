"""An OpenAI-compatible server of one model, which answers many requests together."""
