"""What is left out of a text, and what is found in it."""
