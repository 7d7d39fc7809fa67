"""`segment` and `detect`: what goes to stdout, what to stderr, which files are written, and the exit status."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

import peers
from commands import swinv2_command
from dense.test_heads import SMALL, SMALL_HEADS
from swinv2 import Swinv2Config, Swinv2ForImageClassification
from swinv2.dense import from_backbone
from swinv2.dense.masks import decode_mask
from swinv2.dense.saved import make_dense_processor

NAMES = ["road", "sky [bold]", "tree"]
HEADS = {"upernet": "upernet", "rt_detr": "rt_detr", "mask_rcnn": "mask_rcnn", "instances": "mask2former"}

pytestmark = pytest.mark.usefixtures("registered")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a segmenter and three detectors of drawn weights."""
    folder = tmp_path_factory.mktemp("models")
    peers.draw_weights(Swinv2ForImageClassification(Swinv2Config(**SMALL))).save_pretrained(folder / "checkpoint")
    for name, head in HEADS.items():
        model: Any = from_backbone(folder / "checkpoint", head, NAMES, **SMALL_HEADS[head])
        if name == "instances":
            model.config.dense_task = "instances"
        model.save_pretrained(folder / name)
        processor = make_dense_processor(model, (64, 64), [0.5] * 3, [0.5] * 3)
        if processor is not None:
            processor.save_pretrained(folder / name)
    return folder


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of two images and a broken one. The test runs in an empty folder."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, name in enumerate(("one.png", "two.jpg")):
        pixels = np.random.default_rng(index).integers(0, 256, (9, 12, 3), np.uint8)
        Image.fromarray(pixels).resize((90 + index, 70)).save(folder / name)
    (folder / "void.jpg").write_text("")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return folder


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_segment_draws_and_says_where(models: Path, photos: Path) -> None:
    result = swinv2_command("segment", photos / "one.png", "--model", models / "upernet")
    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines() == ["drawn: segmented/one_classes.png", "drawn: segmented/one_overlay.png"]
    assert files_in(Path()) == ["segmented/one_classes.png", "segmented/one_overlay.png"]
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["image", "class", "share"]
    assert all(line.startswith(str(photos / "one.png")) and line.endswith("%") for line in lines[1:])
    with Image.open("segmented/one_classes.png") as image:
        counts = np.bincount(np.asarray(image).ravel(), minlength=3)
    assert [line.split("  ")[1] for line in lines[1:]] == [NAMES[i] for i in np.argsort(-counts) if counts[i]]
    assert float(lines[1].split()[-1].rstrip("%")) == pytest.approx(counts.max() / 63, abs=0.06)


def test_segment_skips_and_names_what_it_cannot_read(models: Path, photos: Path) -> None:
    result = swinv2_command("segment", photos, "gone.png", "-m", models / "upernet", "-o", "out", "--no-overlay")
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "skipped gone.png: no such file or folder",
        f"skipped {photos / 'void.jpg'}: the file is empty",
        "drawn: out/one_classes.png",
        "drawn: out/two_classes.png",
        "2 of 4 images skipped",
    ]
    assert files_in(Path()) == ["out/one_classes.png", "out/two_classes.png"]


def test_segment_as_json_lines_writes_files_only_on_request(models: Path, photos: Path) -> None:
    result = swinv2_command("segment", photos, "gone.png", "-m", models / "upernet", "--json")
    assert result.exit_code == 1
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(Path(each["image"]).name, each.get("error")) for each in records] == [
        ("gone.png", "no such file or folder"),
        ("one.png", None),
        ("two.jpg", None),
        ("void.jpg", "the file is empty"),
    ]
    assert files_in(Path()) == records[1]["files"] == []
    assert (records[1]["size"], records[2]["size"]) == ([90, 70], [91, 70])
    assert sum(each["pixels"] for each in records[2]["classes"]) == 91 * 70
    assert sum(each["share"] for each in records[2]["classes"]) == pytest.approx(1)
    assert all(NAMES[each["index"]] == each["label"] and "mask" not in each for each in records[1]["classes"])
    with_files = swinv2_command("segment", photos / "one.png", "-m", models / "upernet", "--json", "-o", "out")
    assert json.loads(with_files.stdout)["files"] == files_in(Path()) == ["out/one_classes.png", "out/one_overlay.png"]


def test_segment_encodes_the_masks(models: Path, photos: Path) -> None:
    arguments = ("segment", photos / "one.png", "-m", models / "upernet", "--json", "--rle", "-o", "out")
    record = json.loads(swinv2_command(*arguments).stdout)
    with Image.open("out/one_classes.png") as image:
        classes = np.asarray(image)
    assert {each["index"] for each in record["classes"]} == set(np.unique(classes).tolist())
    for each in record["classes"]:
        assert np.array_equal(decode_mask(each["mask"], (70, 90)), classes == each["index"])


def test_segment_as_csv(models: Path, photos: Path) -> None:
    result = swinv2_command("segment", photos, "-m", models / "upernet", "--csv")
    assert (result.exit_code, files_in(Path())) == (1, [])
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert list(rows[0]) == ["image", "class", "index", "pixels", "share"]
    assert sum(int(row["pixels"]) for row in rows) == (90 + 91) * 70
    assert all(NAMES[int(row["index"])] == row["class"] for row in rows)


def test_segment_by_windows_scales_and_flips_is_what_python_computes(models: Path, photos: Path) -> None:
    from swinv2.dense.answers import Segmenter

    options = [
        (["--window", "32", "--stride", "16x32"], {"window": 32, "stride": (16, 32)}),
        (["--scales", "0.5,1.25", "--flip"], {"scales": (0.5, 1.25), "flip": True}),
        ([], {}),
    ]
    found: list[np.ndarray] = []
    for arguments, fields in options:
        result = swinv2_command("segment", photos / "one.png", "-m", models / "upernet", "-o", "out", *arguments)
        assert result.exit_code == 0, result.output
        segmenter = Segmenter.load(str(models / "upernet"))
        for name, value in fields.items():
            setattr(segmenter, name, value)
        with Image.open(photos / "one.png") as photo, Image.open("out/one_classes.png") as image:
            assert np.array_equal(segmenter(photo.convert("RGB")), np.asarray(image))
            found.append(np.asarray(image))
    assert not np.array_equal(found[0], found[2])
    assert not np.array_equal(found[1], found[2])


@pytest.mark.parametrize("command", ["segment", "detect"])
def test_a_model_is_required_and_the_error_says_how_to_train_one(command: str, photos: Path) -> None:
    result = swinv2_command(command, photos)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "no --model was given" in result.stderr
    task = {"segment": "segmentation", "detect": "detection"}[command]
    assert f"swinv2 finetune --task {task} --data" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["segment"], "no image was given"),
        (["segment", "a.png", "--json", "--csv"], "--json and --csv were both given"),
        (["segment", "a.png", "--rle"], "--rle was given without --json"),
        (["segment", "a.png", "--stride", "8"], "--stride was given without --window"),
        (["segment", "a.png", "--window", "big"], "--window is 'big'; expected pixels"),
        (["segment", "a.png", "--scales", "1,0"], "--scales is '1,0'; expected factors above 0"),
        (["segment", "a.png", "--scales", "nan"], "--scales is 'nan'; expected factors above 0"),
        (["segment", "a.png", "--scales", "1;2"], "--scales is '1;2'; expected factors above 0"),
        (["detect", "a.png", "--json", "--csv"], "--json and --csv were both given"),
        (["detect", "a.png", "--annotations", "a.json"], "--annotations was given without --coco"),
        (["detect", "a.png", "--coco", "no/where.json"], "--coco is 'no/where.json'; expected"),
        (["detect", "a.png", "-m", "m"], "'a.png' (no such file or folder)"),
    ],
)
def test_wrong_options_are_one_sentence(
    arguments: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = swinv2_command(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert sentence in result.stderr
    assert result.stderr.startswith("error: ")


def test_a_file_cannot_be_the_folder_of_the_figures(models: Path, photos: Path) -> None:
    for command, model in (("segment", "upernet"), ("detect", "rt_detr")):
        result = swinv2_command(command, photos / "one.png", "-m", models / model, "-o", photos / "two.jpg")
        assert (result.exit_code, "is a file; expected a folder" in result.stderr) == (2, True)
    inside = swinv2_command("segment", photos / "one.png", "-m", models / "upernet", "-o", photos / "two.jpg" / "out")
    assert (inside.exit_code, "cannot be written to" in inside.stderr) == (2, True)


def test_each_command_names_the_other_one_for_a_model_of_the_other_kind(models: Path, photos: Path) -> None:
    wrong = swinv2_command("segment", photos / "one.png", "-m", models / "rt_detr")
    assert (wrong.exit_code, "use `swinv2 detect`" in wrong.stderr) == (2, True)
    wrong = swinv2_command("detect", photos / "one.png", "-m", models / "upernet")
    assert (wrong.exit_code, "use `swinv2 segment`" in wrong.stderr) == (2, True)
    assert files_in(Path()) == []


@pytest.mark.parametrize("model", ["rt_detr", "mask_rcnn", "instances"])
def test_detect_draws_and_says_where(models: Path, photos: Path, model: str) -> None:
    result = swinv2_command("detect", photos, "-m", models / model, "-t", "0.01", "-b", "1")
    assert result.exit_code == 1, result.output
    assert result.stderr.splitlines()[1:] == [
        "drawn: detected/one_objects.png",
        "drawn: detected/two_objects.png",
        "1 of 3 images skipped",
    ]
    assert files_in(Path()) == ["detected/one_objects.png", "detected/two_objects.png"]
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["image", "label", "score", "left,", "top,", "right,", "bottom"]
    assert {line.split("  ")[0] for line in lines[1:]} == {str(photos / name) for name in ("one.png", "two.jpg")}


def test_detect_says_if_there_is_no_object(models: Path, photos: Path) -> None:
    result = swinv2_command("detect", photos / "one.png", "-m", models / "rt_detr", "-t", "1")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[1].split("  ")[1] == "no object with a score of at least 1"


@pytest.mark.parametrize(("model", "has_masks"), [("rt_detr", False), ("mask_rcnn", True), ("instances", True)])
def test_detect_as_json_lines_is_what_python_computes(models: Path, photos: Path, model: str, has_masks: bool) -> None:
    from swinv2.dense.answers import Detector

    result = swinv2_command("detect", photos, "-m", models / model, "--json", "-t", "0.05")
    assert (result.exit_code, files_in(Path())) == (1, [])
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert (records[2]["error"], records[1]["size"], records[1]["files"]) == ("the file is empty", [91, 70], [])
    with Image.open(photos / "one.png") as image:
        (found,) = Detector.load(str(models / model))([image.convert("RGB")])
    sure = found.scores >= 0.05
    assert sure.any()
    objects = records[0]["objects"]
    assert [each["index"] for each in objects] == found.labels[sure].tolist()
    assert [each["label"] for each in objects] == [NAMES[label] for label in found.labels[sure]]
    np.testing.assert_allclose([each["score"] for each in objects], found.scores[sure], atol=1e-6)
    np.testing.assert_allclose([each["box"] for each in objects], found.boxes[sure], atol=0.00501)
    assert all(("mask" in each) == has_masks for each in objects)
    if has_masks:
        assert [each["mask"] for each in objects] == [
            mask for mask, is_sure in zip(found.masks or [], sure, strict=True) if is_sure
        ]


def test_detect_as_csv(models: Path, photos: Path) -> None:
    result = swinv2_command("detect", photos, "-m", models / "rt_detr", "--csv", "-t", "0")
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert list(rows[0]) == ["image", "label", "index", "score", "left", "top", "right", "bottom"]
    assert all(NAMES[int(row["index"])] == row["label"] for row in rows)
    assert {Path(row["image"]).name for row in rows} == {"one.png", "two.jpg"}
    scores = [float(row["score"]) for row in rows if row["image"].endswith("one.png")]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == SMALL_HEADS["rt_detr"]["num_queries"]


@pytest.mark.parametrize("model", ["rt_detr", "mask_rcnn"])
def test_detect_writes_coco_results_that_pycocotools_reads(models: Path, photos: Path, model: str) -> None:
    """Without annotations, the ids are in a second file; the figures are not drawn."""
    result = swinv2_command("detect", photos, "-m", models / model, "--coco", "r.json", "-t", "0")
    assert result.exit_code == 1, result.output
    assert result.stderr.splitlines()[-3:] == ["written: r.json", "written: r.images.json", "1 of 3 images skipped"]
    assert files_in(Path()) == ["r.images.json", "r.json"]
    read = COCO("r.images.json").loadRes("r.json")
    assert {image["id"]: image["file_name"] for image in read.imgs.values()} == {
        1: str(photos / "one.png"),
        2: str(photos / "two.jpg"),
    }
    assert {category["id"]: category["name"] for category in read.cats.values()} == dict(enumerate(NAMES, 1))
    assert len(read.anns) == len(result.stdout.splitlines()) - 1
    assert all(("counts" in each["segmentation"]) == (model == "mask_rcnn") for each in read.anns.values())


def test_detect_takes_ids_from_annotations(models: Path, photos: Path) -> None:
    images = [{"id": 5, "file_name": "one.png"}, {"id": 3, "file_name": "photos/two.jpg"}]
    categories = [{"id": 40 + index, "name": name} for index, name in enumerate(NAMES)]
    file = Path("a.json")
    file.write_text(json.dumps({"images": images, "categories": categories, "annotations": []}))
    arguments = ["-m", models / "rt_detr", "-t", "0", "--coco", "r.json", "--annotations", file, "--json"]
    result = swinv2_command("detect", photos / "one.png", photos / "two.jpg", *arguments)
    assert (result.exit_code, files_in(Path())) == (0, ["a.json", "r.json"])
    results = json.loads(Path("r.json").read_text())
    records = {Path(each["image"]).name: each for each in map(json.loads, result.stdout.splitlines())}
    for name, number in (("one.png", 5), ("two.jpg", 3)):
        mine = [each for each in results if each["image_id"] == number]
        assert [each["category_id"] - 40 for each in mine] == [each["index"] for each in records[name]["objects"]]
        corners = [[left, top, left + width, top + height] for left, top, width, height in (e["bbox"] for e in mine)]
        np.testing.assert_allclose(corners, [each["box"] for each in records[name]["objects"]], atol=0.0051)
    lost = swinv2_command("detect", photos, *arguments)
    assert (lost.exit_code, "has no image 'void.jpg'" in lost.stderr) == (2, True)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_both_run_in_low_precision(models: Path, photos: Path, precision: str) -> None:
    for command, model in (("segment", "upernet"), ("detect", "rt_detr")):
        result = swinv2_command(command, photos / "one.png", "-m", models / model, "--dtype", precision)
        assert result.exit_code == 0, result.output
