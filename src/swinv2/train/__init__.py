"""Training on transformers' Trainer, and the data for it. Imported only when one trains."""
