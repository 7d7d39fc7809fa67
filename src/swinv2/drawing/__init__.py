"""Draws and writes the figures of this package.

In: arrays, words, matplotlib figures. Out: PNG files, each written atomically. This package knows no model, no training
and no image file. It uses matplotlib's object-oriented interface instead of pyplot: it opens no window and changes no
global state.
"""
