"""How far a command says it is, where there is no terminal to show a bar."""

import re
import time
from pathlib import Path

import pytest
from rich.console import Console

from swinv2 import console
from swinv2.console import Lines, progress_bar, shown


def test_a_line_says_how_far_and_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    lines = Lines(50_000, Console(stderr=True), "classifying")
    assert lines.line() == "classifying 0/50,000, unknown time left"
    now = 110.0
    lines.update(2_000, 50_000)
    assert lines.line() == "classifying 2,000/50,000, 200 images/s, 4:00 left"
    now = 120.0
    lines.update(2_500, 50_000)
    # The speed since the line before; the time left by the speed of all.
    assert lines.line() == "classifying 2,500/50,000, 50 images/s, 6:20 left"
    now = 125.0
    # Nothing since then: the speed of all.
    assert lines.line() == "classifying 2,500/50,000, 100 images/s, 7:55 left"
    now = 120.0
    lines.begin("training: step", 40, 100, images=16, facts=lambda: "loss 2.5, rate 0.001")
    now = 130.0
    lines.update(45, 100)
    assert lines.line() == "training: step 45/100, loss 2.5, rate 0.001, 8 images/s, 1:50 left"
    assert Lines(9, Console(stderr=True), "choosing", "penalties").line() == "choosing 0/9, unknown time left"
    told = Lines(9, Console(stderr=True), "predicting", "shards")
    told.tell("1,234 images, 56/s")
    assert told.line() == "predicting 0/9, 1,234 images, 56/s, unknown time left"
    lines.begin("converting", 0, 0)
    now = 195.0
    assert lines.line() == "converting: 1:05 so far"


def test_lines_come_however_long_a_step_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0.05)
    with progress_bar(3, "classifying") as progress:
        progress.advance()
        time.sleep(0.4)
    out, err = capsys.readouterr()
    assert not out
    assert re.match(r"classifying 1/3, [0-9.e+]+ images/s, 0:0[0-9] left\n", err)
    assert err.count("\n") >= 2
    time.sleep(0.2)
    assert not capsys.readouterr().err


def test_a_short_command_prints_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(1, "classifying") as progress:
        progress.advance()
    assert capsys.readouterr() == ("", "")


def test_a_terminal_shows_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0.01)
    with progress_bar(3, "classifying") as progress:
        progress.advance()
        time.sleep(0.2)
    shown = capsys.readouterr().err
    assert "1/3" in shown
    assert "images/s" not in shown
    with progress_bar(3, "predicting", unit="shards") as progress:
        progress.tell("1,234 images, 56/s")
        time.sleep(0.2)
    assert "1,234 images, 56/s" in capsys.readouterr().err
    with progress_bar(3, "classifying", is_shown=False) as progress:
        progress.advance()
        time.sleep(0.05)
    assert not capsys.readouterr().err


def test_odd_file_names_are_shown_without_harm() -> None:
    assert shown(Path("a\x1b[31m.png")) == repr("a\x1b[31m.png")
    assert shown(Path("a\udcff.png")) == "a\ufffd.png"
