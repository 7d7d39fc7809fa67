"""The warnings of data sets."""

import logging

import pytest


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    # The commands switch it off.
    monkeypatch.setattr(logging.getLogger("swinv2"), "propagate", True)
    return caplog
