"""Tables in a terminal."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from swinv2.cli import printing
from swinv2.predict.describe import describe
from swinv2.predict.predictor import Prediction
from swinv2.predict.shipped import Photograph


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_tables_fit_a_terminal_of_eighty_columns(encoding: str) -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    console = Console(file=file, force_terminal=True, width=80, color_system=None, legacy_windows=False)
    printing.print_description(describe("giant-3b"), console)
    of_cats = Photograph(
        Path("cat.jpg"), "a cat on a wall, and another cat below", "cat", "somewhere", "somebody", "MIT"
    )
    answers = [[Prediction(0, "cat", 1.0)], [Prediction(1, "European fire salamander", 0.5)]]
    printing.print_demo([of_cats, of_cats], answers, console)
    printing.print_labels([(Path("x" * 100 + ".png"), [Prediction(0, "cat", 1.0)])], console)
    file.flush()
    text = raw.getvalue().decode(encoding)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "2,149,996" in text
    assert "…" not in text
    assert ("✓" in text) == (encoding == "utf-8")


def test_labels_above_one_half_are_bold() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=80, color_system="standard", legacy_windows=False)
    several = [Prediction(0, "cat", 0.9), Prediction(1, "dog", 0.6), Prediction(2, "owl", 0.4)]
    printing.print_labels([(Path("a.png"), several)], console)
    lines = {name: line for line in file.getvalue().splitlines() for name in ("cat", "dog", "owl") if name in line}
    assert ["\x1b[1m" in lines[name] for name in ("cat", "dog", "owl")] == [True, True, False]
