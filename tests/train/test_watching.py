"""What a training says while it runs."""

import re

import pytest

from swinv2 import console
from trainings import train


def test_lines_of_progress_where_there_is_no_terminal(
    flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0.02)
    train("finetune", [*flags, "--num_train_epochs", "6", "--per_device_eval_batch_size", "1"])
    said = capsys.readouterr().err
    number = "[0-9.e+-]+"
    step = rf"training: step [0-9]+/30, loss {number}, rate {number}, {number} images/s, 0:[0-9]+ left\n"
    assert re.search(step, said), said
    assert re.search(rf"evaluating: batch [0-9]+/15, {number} images/s, 0:[0-9]+ left\n", said), said
    assert re.search("saving: 0:[0-9]+ so far\n", said), said
