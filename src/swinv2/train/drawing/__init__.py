"""Images of a training: its curves, what a pre-trained model draws, and where a classifier errs.

In: the log of transformers' Trainer, tensors of images, counts, images with their names. Out: PNG files, each written
atomically. This package trains and evaluates nothing, opens no data set, and knows neither a model nor a run's folders;
what is to be drawn is brought to it.

All of them are drawn on `swinv2.drawing`. What can be computed without matplotlib is in functions that return arrays:
`curves.curves`, `reconstructions.reconstruction_rows`.
"""
