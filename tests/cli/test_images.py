"""The commands that run a model on images: what goes to stdout, what to stderr, and the exit status."""

import csv
import io
import json
from pathlib import Path

import pytest
from PIL import Image
from safetensors import safe_open

from commands import LABELS, swinv2_command
from swinv2.predict import shipped


def test_classify_prints_a_plain_table_and_names_what_it_skips(model: Path, images: Path) -> None:
    result = swinv2_command("classify", images, "--model", model, "-k", 2)
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["image", "label", "probability"]
    assert [line.split("  ")[0] for line in lines[1:]] == [
        str(images / name) for name in ("[red]x.png", "photo 10.png", "photo 2.png") for _ in range(2)
    ]
    assert all(line.rstrip().endswith("%") for line in lines[1:])
    assert result.stderr.splitlines() == [
        f"skipped {images / 'photo 3.jpg'}: not an image",
        "1 of 4 images skipped",
    ]


def test_classify_without_broken_files_says_nothing_else(model: Path, images: Path) -> None:
    result = swinv2_command("classify", images / "photo 2.png", "-m", model)
    assert (result.exit_code, result.stderr) == (0, "")
    assert len(result.stdout.splitlines()) == 1 + 3


def test_classify_as_json_lines(model: Path, images: Path) -> None:
    result = swinv2_command("classify", images, images / "gone.png", "-m", model, "--json", "-k", 99)
    assert result.exit_code == 1
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(Path(record["image"]).name, "error" in record) for record in records] == [
        ("gone.png", True),
        ("[red]x.png", False),
        ("photo 10.png", False),
        ("photo 2.png", False),
        ("photo 3.jpg", True),
    ]
    assert records[0]["error"] == "no such file or folder"
    predictions = records[1]["predictions"]
    assert {prediction["label"] for prediction in predictions} == set(LABELS)
    assert [LABELS.index(prediction["label"]) for prediction in predictions] == [p["index"] for p in predictions]
    assert predictions == sorted(predictions, key=lambda prediction: -prediction["probability"])
    assert result.stderr.splitlines()[-1] == "2 of 5 images skipped"


def test_classify_as_csv(model: Path, images: Path) -> None:
    result = swinv2_command("classify", images, "-m", model, "--csv", "-k", 2, "-b", 1)
    assert result.exit_code == 1
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert [row["rank"] for row in rows] == ["1", "2"] * 3
    assert all(0 <= float(row["probability"]) <= 1 and LABELS[int(row["index"])] == row["label"] for row in rows)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_classify_in_low_precision(model: Path, images: Path, precision: str) -> None:
    assert swinv2_command("classify", images / "photo 2.png", "-m", model, "--dtype", precision).exit_code == 0


def test_features(model: Path, images: Path, tmp_path: Path) -> None:
    output = tmp_path / "features.safetensors"
    result = swinv2_command("features", images, "-m", model, "-o", output, "--stage", "stage1")
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"features of 3 images written to {output}" in result.stderr
    assert "1 of 4 images skipped" in result.stderr
    with safe_open(output, "pt") as opened:
        assert opened.get_slice("features").get_shape() == [3, 8, 8, 8]
        assert opened.metadata()["stage"] == "stage1"
    broken = swinv2_command("features", images / "photo 3.jpg", "-m", model, "-o", tmp_path / "none.parquet")
    assert broken.exit_code == 1
    assert not (tmp_path / "none.parquet").exists()


def test_demo_counts_what_is_right(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the photographs whose subject has a label; the third has none."""
    monkeypatch.setattr(shipped, "FOLDER", model)
    result = swinv2_command("demo")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert [line.split("  ")[0] for line in lines[1:4]] == ["a cat", "a dog", "a tree"]
    num_right = sum("✓" in line for line in lines)
    assert num_right + sum("✗" in line for line in lines) == 2
    assert lines[3].rstrip().endswith("no label")
    # The model has four labels, so each is among the most probable.
    assert lines[-1] == (
        f"{num_right} of 2 right, 2 among the 4 most probable labels; no label fits the other 1 photographs"
    )
    photograph = model / "samples" / "dog.png"
    valid = photograph.read_bytes()
    photograph.write_text("")
    assert "reinstall the package" in swinv2_command("demo").stderr
    photograph.write_bytes(valid)


def test_demo_draws_a_contact_sheet(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only if a file is named; a folder cannot be the file."""
    monkeypatch.setattr(shipped, "FOLDER", model)
    monkeypatch.chdir(tmp_path)
    assert swinv2_command("demo").exit_code == 0
    assert list(tmp_path.iterdir()) == []
    result = swinv2_command("demo", "--output", tmp_path / "new" / "demo.png")
    assert (result.exit_code, result.stderr.split()) == (0, ["drawn:", str(tmp_path / "new" / "demo.png")])
    with Image.open(tmp_path / "new" / "demo.png") as sheet:
        assert sheet.width > 3 * 160
    result = swinv2_command("demo", "--output", tmp_path)
    assert (result.exit_code, "is not a regular file" in result.stderr) == (2, True)
