"""A package, since `tests/test_images.py` has the name of `tests/cli/test_images.py`."""
