"""Many files are counted instead of named."""

from pathlib import Path

import pytest

from swinv2.cli.dense_report import for_classes, run_and_print
from swinv2.predict.segmenting import ClassShare, Segmented


@pytest.mark.parametrize("count", [3, 4])
def test_more_than_six_files_are_counted(count: int, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"photo{number}" for number in range(count)]
    answers = (
        (Path(f"{name}.jpg"), Segmented((2, 1), [ClassShare(0, "[red]", 2, 1.0)], [Path("out") / f"{name}_{kind}.png"
                                                                                 for kind in ("classes", "overlay")]))
        for name in names
    )  # fmt: skip
    run_and_print("segmenting", answers, count, [], for_classes(), Path("out"), as_json=False, as_csv=False)
    printed = capsys.readouterr()
    assert [line.split() for line in printed.out.splitlines()] == [
        ["image", "class", "share"],
        *([f"{name}.jpg", "[red]", "100.0%"] for name in names),
    ]
    if count == 4:
        assert printed.err.splitlines() == ["drawn: 8 files in out"]
    else:
        kinds = ("classes", "overlay")
        assert printed.err.splitlines() == [f"drawn: out/{name}_{kind}.png" for name in names for kind in kinds]
