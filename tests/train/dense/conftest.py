"""Messages reach the tests, although the command line may have run before."""

import logging

import pytest


@pytest.fixture(autouse=True)
def messages_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("swinv2"), "propagate", True)
