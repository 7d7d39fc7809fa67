"""Videos with labels: folders of classes, and lists of files with labels."""
