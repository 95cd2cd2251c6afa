"""Trained models for other programs: GGUF files, Hugging Face directories, and proof of both."""
