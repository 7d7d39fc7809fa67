"""What every figure of this package is drawn on and written by.

In: arrays, words, figures of matplotlib. Out: PNG files, each written atomically. This package knows no model, no
training and no image file; matplotlib draws, through its object-oriented interface: no window, no pyplot, no state that
others would notice.
"""
