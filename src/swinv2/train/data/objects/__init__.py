"""Images with boxes and masks of objects: formats, cleaning, the data set."""
