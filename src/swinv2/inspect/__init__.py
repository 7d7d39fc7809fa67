"""Draws figures of a model's attention, position bias, feature maps and activations.

In: a model and images or videos. Out: PNG files, and their numbers. `view` finds the pixels that the model sees of an
image, `observation` records one forward pass. Each figure has a file: `attention_map` (the attention of one token over
the image), `bias_field` (the position bias), `components` (feature maps as colours), `amplitudes` (the size of
activations, block by block). `over_time` draws attention and feature maps of videos. `gallery` and `clips` implement
the command `swinv2 inspect`.

This package is separate from `predict` and `train`, which need neither matplotlib nor attention weights. Functions that
return arrays compute the numbers before they are drawn.
"""
