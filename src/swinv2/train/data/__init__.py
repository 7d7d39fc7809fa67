"""Images to learn from: where they are found, one sample, and what becomes of it on the way into a batch."""
