"""Figures of a training: its curves, reconstructions of a pre-trained model, mistakes and precision of a classifier.

In: the log of transformers' Trainer, tensors of images, counts, images with their names. Out: PNG files, each written
atomically. This package trains and evaluates nothing, opens no data set, and knows no model and no folder of a run.

`swinv2.drawing` has the common code of all figures. `curves.curves` and `reconstructions.reconstruction_rows` compute
without matplotlib, and return arrays.
"""
