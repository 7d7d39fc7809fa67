"""Tests of the trainings; a package, because test_features.py also exists for `predict`."""
