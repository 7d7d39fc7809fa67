"""Messages reach the tests, although the command line may have run before; videos that all tests share."""

import logging
from pathlib import Path

import pytest

from clips import write_directions


@pytest.fixture(autouse=True)
def messages_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("swinv2"), "propagate", True)


@pytest.fixture(scope="session")
def directions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 videos to train on and 6 to evaluate."""
    return write_directions(tmp_path_factory.mktemp("directions"))
