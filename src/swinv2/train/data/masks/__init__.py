"""Images with masks, the class of each pixel: files, layouts of folders, the data set."""
