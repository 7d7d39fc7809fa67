"""Marks of transformers' common tests, which `test_transformers_suite.py` runs."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Makes the marks known."""
    for name in "accelerate_tests", "flash_attn_test", "flash_attn_3_test", "flash_attn_4_test", "torch_compile_test":
        config.addinivalue_line("markers", f"{name}: a mark of transformers' tests")
