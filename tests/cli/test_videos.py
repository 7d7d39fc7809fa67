"""`swinv2 classify` for videos, `convert --inflate` and `info` of a video model."""

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clips import write_directions
from commands import LABELS, swinv2_command
from video_files import counted, write_video


@pytest.fixture(scope="module")
def video_model(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inflated") / "video-model"
    result = swinv2_command(
        *("convert", model, folder, "--inflate", "--num-frames", 4, "--tubelet-size", 2, "--window-frames", 2)
    )
    assert (result.exit_code, result.stderr) == (0, f"written: {folder}\n")
    assert "Swinv2ForVideoClassification" in result.stdout
    assert "4 of a clip, 2 of a patch" in result.stdout
    assert "- Inflated: the kernel of a patch is repeated for 2 frames" in result.stdout
    assert sorted(path.name for path in folder.iterdir()) == [
        *("config.json", "model.safetensors", "video_preprocessor_config.json"),
    ]
    return folder


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """A folder of two valid videos, a broken one, and a file of another kind."""
    folder = tmp_path / "videos"
    folder.mkdir()
    write_video(folder / "a.mp4", counted(8))
    write_video(folder / "b.mkv", np.concatenate([counted(8)] * 3), codec="ffv1")
    (folder / "c.avi").write_text("broken")
    (folder / "notes.txt").write_text("notes")
    return folder


def test_videos_in_a_folder(video_model: Path, videos: Path) -> None:
    result = swinv2_command("classify", videos, "--model", video_model, "-k", 2)
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["video", "label", "probability"]
    assert [line.split("  ")[0] for line in lines[1:]] == [
        str(videos / name) for name in ("a.mp4", "b.mkv") for _ in "12"
    ]
    first, last = result.stderr.splitlines()
    assert first.startswith(f"skipped {videos / 'c.avi'}: it is not a video in a format that is read here")
    assert last == "1 of 3 videos skipped"


def test_json_and_csv(video_model: Path, videos: Path) -> None:
    options = ("--model", video_model, "--clips", 2, "--crops", 3, "--num-frames", 2, "--frame-stride", 1.5)
    result = swinv2_command("classify", videos, videos / "gone.mp4", *options, "--json", "-k", 9)
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(Path(record["video"]).name, "error" in record) for record in records] == [
        *(("gone.mp4", True), ("a.mp4", False), ("b.mkv", False), ("c.avi", True)),
    ]
    assert {each["label"] for each in records[1]["predictions"]} == set(LABELS)
    assert sum(each["probability"] for each in records[1]["predictions"]) == pytest.approx(1)
    result = swinv2_command("classify", videos / "a.mp4", *options, "--csv", "-k", 9)
    assert (result.exit_code, result.stderr) == (0, "")
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert list(rows[0]) == ["video", "rank", "label", "index", "probability"]
    assert [float(row["probability"]) for row in rows] == pytest.approx(
        [each["probability"] for each in records[1]["predictions"]], abs=1e-5
    )


def test_timeline(video_model: Path, videos: Path, tmp_path: Path) -> None:
    output = tmp_path / "time.png"
    result = swinv2_command("classify", videos / "b.mkv", "-m", video_model, "--timeline", output)
    assert (result.exit_code, result.stderr) == (0, f"drawn: {output}\n")
    with Image.open(output) as image:
        assert image.format == "PNG"
    result = swinv2_command("classify", videos / "c.avi", "-m", video_model, "--timeline", tmp_path / "none.png")
    assert result.exit_code == 1
    assert not (tmp_path / "none.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("classify", "{videos}/a.mp4", "-m", "{model}"), "is a video, and the model '{model}' is for images."),
        (("classify", "{videos}/a.mp4"), "is a video, and the shipped model is for images. Make a video model of it"),
        (("classify", "{image}", "-m", "{video_model}"), "is an image, and the model '{video_model}' is for videos"),
        (("classify", "{image}", "-m", "{model}", "--clips", "2"), "--clips is for videos"),
        (("classify", "{videos}", "-m", "{video_model}", "--timeline", "a.png"), "but 3 were given; give one."),
        (("classify", "{video_model}", "-m", "{video_model}"), "Name video files, folders with videos, or globs"),
        (("inspect", "{videos}/a.mp4", "-m", "{model}"), "swinv2 inspect {videos}/a.mp4 --model video-model."),
        (("inspect", "{image}", "-m", "{model}", "--time", "1"), "--time is for videos"),
        (
            ("convert", "{video_model}", "out", "--inflate"),
            "and only models of images are converted",
        ),
        (("convert", "{model}", "out", "--num-frames", "8"), "--num-frames has no effect without --inflate"),
        (("convert", "{model}", "out", "--inflate", "--to", "timm"), "the format 'timm' has no video models"),
        (
            ("convert", "{model}", "out", "--inflate", "--num-frames", "1", "--tubelet-size", "2"),
            "num_frames 1 is smaller than tubelet_size 2",
        ),
    ],
)
def test_what_cannot_be_done(
    model: Path, video_model: Path, videos: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "image.png")
    places = {"model": model, "video_model": video_model, "videos": videos, "image": tmp_path / "image.png"}
    result = swinv2_command(*(argument.format(**places) for argument in arguments))
    assert result.exit_code == 2
    assert message.format(**places) in result.stderr
    assert not Path("out").exists()


def test_info_of_a_video_model(video_model: Path) -> None:
    result = swinv2_command("info", video_model, "--memory")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "video model in a folder" in result.stdout
    assert "4 frames, in patches of 2, with a stride of 2" in result.stdout
    assert "2x8x8" in result.stdout
    described = json.loads(swinv2_command("info", video_model, "--json").stdout)
    assert (described["num_frames"], described["tubelet_size"]) == (4, 2)
    assert described["stages"][0]["window"] == [2, 4, 4]
    assert described["labels"] == LABELS


def test_a_classifier_of_videos_is_trained_and_evaluated(tmp_path: Path) -> None:
    data, run = write_directions(tmp_path / "data", train=2, evaluated=1), tmp_path / "run"
    fields = {"embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2]}
    settings = {
        "model": "new",
        "model_fields": json.dumps(fields),
        "image_size": 32,
        "window_size": 4,
        "num_frames": 6,
        "window_frames": 2,
        "frame_stride": 1,
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "dataloader_num_workers": 0,
        "report_to": "none",
        "use_cpu": True,
        "output_dir": run,
    }
    flags = [part for name, value in settings.items() for part in (f"--{name}", value)]
    result = swinv2_command("finetune", "--task", "video", "--data", data, *flags)
    assert result.exit_code == 0, result.stderr
    assert re.search(r"label +recall +videos\n", result.stdout), result.stdout
    trained = json.loads((run / "results.json").read_text())
    assert trained["step"] == 2
    options = ("--model", run / "final", "--clips", 2, "--crops", 3, "--json")
    result = swinv2_command("evaluate", data, *options)
    assert result.exit_code == 0, result.stderr
    scores = json.loads(result.stdout)
    assert scores["images"] == 3
    assert 0 <= scores["top1"] <= 1
    result = swinv2_command("evaluate", data, "--model", run / "final")
    assert re.search(r"\nvideos +3\n", result.stdout), result.stdout
    assert "images" not in result.stdout
    result = swinv2_command("classify", data / "validation/left/0.mp4", "--model", run / "final", "--csv")
    assert result.exit_code == 0, result.stderr
    assert {row["label"] for row in csv.DictReader(io.StringIO(result.stdout))} <= {"left", "right", "still"}


def test_without_a_video_the_example_is_one(video_model: Path) -> None:
    result = swinv2_command("classify", "--model", video_model)
    assert result.exit_code == 2
    assert f"swinv2 classify clip.mp4 --model {video_model}" in result.stderr
