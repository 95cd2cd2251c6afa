"""The machine: its hardware, its speed, and its memory in use."""
