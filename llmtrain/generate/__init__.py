"""Text from a trained model: several texts together, with cached keys and values."""
