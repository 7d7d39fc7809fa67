"""Images to learn from: sources, samples, augmentation, batches."""
