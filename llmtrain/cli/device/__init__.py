"""`llmtrain device`: what the machine has, and how fast its CPU is."""
