"""From what a user names to files: here, in a store, or on a hub."""
