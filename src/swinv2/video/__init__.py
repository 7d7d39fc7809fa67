"""Videos: the same network with windows in space and time.

A map has frames, height and width; a window covers some of each, and the position bias has three log-spaced
coordinates. Merging is in space only. A video model made of an image model (`inflate.py`) gives a still clip the image
model's answer.
"""
