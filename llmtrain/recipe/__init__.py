"""Scaling rules: vocabulary, model size, batch size, learning rate."""
