"""Conversations as data: their rows, and their tokens with what the assistant wrote marked."""
