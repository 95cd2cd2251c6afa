"""Profiles: the schema, the layers of settings, exact counts of a shape."""
