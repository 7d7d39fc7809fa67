"""Looking inside a model: figures of what it attends to, has learned and computes.

In: a model and images. Out: PNG files, and the numbers behind them. `view` says what the model sees of an image,
`observation` keeps what one forward pass leaves behind, and then there is a file for each idea: `attention_map` (the
attention of one token over the image), `bias_field` (the position bias), `components` (feature maps as colours),
`amplitudes` (how large activations are, block by block). `gallery` is behind the command `swinv2 inspect`.

It is a package of its own besides `predict` and `train`: it gives no answers about images and trains nothing, and both
do without matplotlib or without attention weights. What is drawn, is computed first, in functions that return arrays.
"""
