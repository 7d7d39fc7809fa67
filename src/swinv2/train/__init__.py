"""Training with transformers' Trainer, and its data. Only the commands that need it import it."""
