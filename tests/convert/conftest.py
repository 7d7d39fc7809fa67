"""A valid file, for tests that damage it."""

import pytest

import foreign
from conversions import File
from foreign import small_sizes


@pytest.fixture(scope="module")
def valid() -> File:
    """Of the authors, whose files hold more than the others'."""
    return foreign.microsoft_file(small_sizes(window_size=4, pretrained=(3, 3)))


@pytest.fixture
def file(valid: File) -> File:
    """The same, to be damaged."""
    return {name: tensor.clone() for name, tensor in valid.items()}
