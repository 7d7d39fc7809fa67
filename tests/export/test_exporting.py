"""Exports: what is in the folder, that it answers as its source, by hand and as --model, and that a wrong one is not
written."""

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

import peers
from commands import swinv2_command
from export_models import FIELDS, draw_photos, make_processor, needs_exporters, save_model
from scenes import SMALL, SMALL_HEADS
from swinv2 import (
    Swinv2Backbone,
    Swinv2Config,
    Swinv2ForImageClassification,
    Swinv2ForMaskedImageModeling,
    Swinv2Model,
)
from swinv2.dense import from_backbone
from swinv2.dense.saved import make_dense_processor
from swinv2.errors import UsageError
from swinv2.export import exporting
from swinv2.export.exporting import export_model
from swinv2.export.report import ExportSettings, Report
from swinv2.exported import TRUST, ExportedNetwork

pytestmark = needs_exporters

CPU = torch.device("cpu")
SIZES = [(64, 64), (40, 72)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier, ten photographs, and exports of the classifier."""
    folder = tmp_path_factory.mktemp("exports")
    save_model(folder / "model", Swinv2ForImageClassification, id2label=dict(enumerate("abcde")))
    draw_photos(folder / "photos", 10)
    return folder


def run_export(folder: Path, name: str, **settings: Any) -> Report:
    photos = sorted((folder / "photos").iterdir())
    return export_model(str(folder / "model"), folder / name, ExportSettings(**({"images": photos} | settings)))


@pytest.fixture(scope="module")
def openvino(folder: Path) -> Path:
    run_export(folder, "openvino", format="openvino")
    return folder / "openvino"


@pytest.fixture(scope="module")
def onnx(folder: Path) -> Path:
    """Takes bytes, of two sizes."""
    run_export(folder, "onnx", format="onnx", sizes=SIZES, takes_bytes=True)
    return folder / "onnx"


@pytest.fixture(scope="module")
def pt2(folder: Path) -> Path:
    run_export(folder, "torch", format="torch")
    return folder / "torch"


def logits_of(folder: Path, images: Tensor) -> Tensor:
    model = Swinv2ForImageClassification.from_pretrained(folder / "model")
    with torch.no_grad():
        return model(images).logits


def test_the_folder_says_all_that_a_program_needs(openvino: Path) -> None:
    assert {file.name for file in openvino.iterdir()} == {
        "config.json", "export.json", "labels.json", "openvino_model.bin", "openvino_model.xml", "preprocessing.json",
        "preprocessor_config.json", "report.json",
    }  # fmt: skip
    assert json.loads((openvino / "labels.json").read_text()) == [*"abcde"]
    assert json.loads((openvino / "preprocessing.json").read_text()) == {
        "images": [
            {
                "file": "openvino_model.xml",
                "size": [64, 64],
                "resize": {"height": 64, "width": 64},
                "resample": 2,
                "centre_crop": None,
            },
        ],
        "colours": "RGB",
        "layout": "NCHW",
        "dtype": "float32",
        "rescale_factor": 1 / 255,
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.3, 0.25],
        "normalised_in_the_graph": False,
    }
    report = json.loads((openvino / "report.json").read_text())
    (row,) = report["sizes"]
    assert (row["image_size"], row["images"], row["agreement"]) == ([64, 64], 10, 1.0)
    assert row["file"] == "openvino_model.xml"
    assert row["share"] > 0
    assert row["share"] == pytest.approx(row["largest"] / row["distance"])
    assert min(row["images_a_second"].values()) > 0
    assert report["bytes"] == sum((openvino / f"openvino_model.{end}").stat().st_size for end in ("bin", "xml"))
    assert (report["precision"], report["accepted"], "accuracy" in row) == ("float32", [], False)
    assert {"openvino", "transformers", "torch"} <= {*report["versions"]}


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("name", ["openvino", "pt2"])
def test_any_batch(name: str, batch: int, folder: Path, request: pytest.FixtureRequest) -> None:
    network = ExportedNetwork(request.getfixturevalue(name), None, CPU, trusted=True)
    images = torch.randn(batch, 3, 64, 64)
    torch.testing.assert_close(network(images).logits, logits_of(folder, images), rtol=0, atol=2e-5)
    assert network.architecture == "Swinv2ForImageClassification"


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("size", SIZES)
def test_bytes_by_hand_in_onnx_runtime(onnx: Path, folder: Path, size: tuple[int, int], batch: int) -> None:
    """The reference resizes nothing: the pixels are what a program has."""
    import onnxruntime

    pixels = np.random.default_rng(0).integers(0, 256, (batch, *size, 3), np.uint8)
    session = onnxruntime.InferenceSession(onnx / f"{size[0]}x{size[1]}.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(["logits"], {"pixel_values": pixels})
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.25])
    images = ((torch.from_numpy(pixels).float() / 255 - mean) / std).permute(0, 3, 1, 2)
    torch.testing.assert_close(torch.from_numpy(found), logits_of(folder, images), rtol=0, atol=2e-5)


def test_the_graph_has_no_position_network_and_one_opset(onnx: Path) -> None:
    import onnx as onnx_package

    model = onnx_package.load(onnx / "64x64.onnx")
    onnx_package.checker.check_model(model)
    kinds = [node.op_type for node in model.graph.node]
    assert not {"Sigmoid", "Relu", "Log", "Sign", "Range", "Where"} & {*kinds}
    # Three blocks: query, key, value, two of attention, output, and two of the MLP; merging. The classifier is a Gemm.
    assert (kinds.count("MatMul"), kinds.count("Gemm"), kinds.count("Softmax")) == (3 * 8 + 1, 1, 3)
    # To the windows, to the shifted ones, and to the merging; to the windows of the third block, and back.
    assert kinds.count("Gather") == 5
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 20)]


def test_openvino_has_one_operation_for_attention(openvino: Path) -> None:
    import openvino as runtime

    kinds = [each.get_type_name() for each in runtime.Core().read_model(openvino / "openvino_model.xml").get_ops()]
    assert not {"Sigmoid", "Relu", "Log", "Sign", "Roll", "Softmax"} & {*kinds}
    assert (kinds.count("ScaledDotProductAttention"), kinds.count("Gather")) == (3, 5)
    assert kinds.count("MatMul") == 3 * 6 + 1 + 1


@pytest.mark.parametrize("name", ["openvino", "onnx", "pt2"])
def test_classify_and_evaluate_run_it(
    name: str, folder: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TRUST, "1")
    exported, photos = request.getfixturevalue(name), folder / "photos"
    found = [
        swinv2_command("classify", photos, "--model", model, "--json", "--top-k", 5)
        for model in (folder / "model", exported)
    ]
    assert [each.exit_code for each in found] == [0, 0], found[1].output
    mine, theirs = ([json.loads(line) for line in each.stdout.splitlines()] for each in found)
    for one, other in zip(mine, theirs, strict=True):
        assert [each["label"] for each in one["predictions"]] == [each["label"] for each in other["predictions"]]
        assert [each["probability"] for each in one["predictions"]] == pytest.approx(
            [each["probability"] for each in other["predictions"]], abs=1e-4
        )
    labelled = folder / f"labelled-{name}"
    for label in "ab":
        draw_photos(labelled, 4, label)
    scores = [
        json.loads(swinv2_command("evaluate", labelled, "--model", model, "--split", "train", "--json").stdout)
        for model in (folder / "model", exported)
    ]
    assert scores[0]["top1"] == scores[1]["top1"]
    assert scores[0]["loss"] == pytest.approx(scores[1]["loss"], abs=1e-4)


def test_a_service_runs_it(openvino: Path, folder: Path) -> None:
    from swinv2.predict import Classifier
    from swinv2.serving.models import load_served
    from swinv2.serving.settings import ServiceSettings

    served = load_served(ServiceSettings(model=str(openvino)))
    assert (served.about, [*served.endpoints]) == (
        "a classifier of 5 labels, exported to openvino on cpu",
        ["classify"],
    )
    endpoint, photo = served.endpoints["classify"], next((folder / "photos").iterdir())
    (found,) = endpoint.answer([endpoint.prepare(photo.read_bytes())], top_k=2)
    ((_, expected),) = Classifier.load(str(folder / "model")).classify([photo], top_k=2)
    assert [each["label"] for each in found["predictions"]] == [each.label for each in expected]


def test_predict_runs_it(openvino: Path, folder: Path, tmp_path: Path) -> None:
    import pyarrow.parquet

    answers: list[list[str]] = []
    for name, model in (("mine", folder / "model"), ("theirs", openvino)):
        result = swinv2_command("predict", folder / "photos", "--model", model, "--output", tmp_path / name)
        assert result.exit_code == 0, result.output
        files = sorted((tmp_path / name).rglob("*.parquet"))
        answers.append([row["labels"] for file in files for row in pyarrow.parquet.read_table(file).to_pylist()])
    assert answers[0] == answers[1] != []


def test_what_an_export_cannot_do_is_a_sentence(
    openvino: Path, pt2: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = next((folder / "photos").iterdir())
    monkeypatch.delenv(TRUST, raising=False)
    for arguments, sentence in [
        (
            ["classify", photo, "-m", openvino, "--device", "cuda"],
            "which runs on cpu, xpu here, not on 'cuda'. Use --de",
        ),
        (["features", photo, "-m", openvino, "-o", folder / "f.safetensors"], "is an export of Swinv2ForImageClass"),
        (["classify", photo, "-m", pt2], f"can run any code when it is loaded. If you trust it, set {TRUST}=1."),
        (["classify", photo, "-m", openvino, "--dtype", "float16"], "does not run in float16 here; use float32 or bf"),
        (
            ["inspect", photo, "-m", openvino, "-o", folder / "f"],
            "is an exported model; this needs the model that it c",
        ),
        (["evaluate", folder, "-m", openvino, "--knn"], "is an exported model; this needs the model that it came"),
        (["export", openvino, folder / "again"], "is an exported model; export the model that it came from"),
        (["export", folder / "model", openvino], "is not empty; give the name of a new folder"),
    ]:
        result = swinv2_command(*arguments)
        assert (result.exit_code, result.stdout) == (2, ""), result.output
        assert sentence in result.stderr
    with pytest.raises(ValueError, match=r"the images are 32 x 64 pixels; this export takes 64 x 64"):
        ExportedNetwork(openvino, None, CPU)(torch.zeros(1, 3, 32, 64))


def test_damaged_exports_are_sentences(onnx: Path, folder: Path, tmp_path: Path) -> None:
    photo = next((folder / "photos").iterdir())

    def spoil(file: str, change: Any) -> str:
        """The error of a copy of an export in which one file has other bytes."""
        damaged = tmp_path / f"{len([*tmp_path.iterdir()])}"
        shutil.copytree(onnx, damaged)
        (damaged / file).write_bytes(change((damaged / file).read_bytes()))
        result = swinv2_command("classify", photo, "-m", damaged)
        assert (result.exit_code, result.stdout) == (2, ""), result.output
        return result.stderr

    assert "is damaged" in spoil("export.json", lambda content: b"{")
    assert "is damaged" in spoil("export.json", lambda content: content.replace(b'"64x64.onnx"', b'"../x.onnx"'))
    assert "is damaged" in spoil("export.json", lambda content: content.replace(b'"shape"', b'"form"'))
    assert "expected one of" in spoil("export.json", lambda content: content.replace(b'"onnx"', b'"tflite"'))
    assert "cannot be loaded" in spoil("64x64.onnx", lambda content: content[:1000])
    assert "cannot be loaded" in spoil("64x64.onnx.data", lambda content: content[:-1000])


@pytest.mark.parametrize("package", ["openvino", "transformers.exporters"])
def test_a_missing_package_is_a_sentence(
    package: str, openvino: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if package == "openvino":
        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    else:
        monkeypatch.setitem(sys.modules, package, None)
    photo = next((folder / "photos").iterdir())
    for arguments in (["classify", photo, "-m", openvino], ["export", folder / "model", tmp_path / "out"]):
        result = swinv2_command(*arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert "install swinv2[export]" in result.stderr


def test_several_labels_and_regressions(folder: Path, tmp_path: Path) -> None:
    """Only the accuracy and int8 need one label for an image."""
    fields = {"problem_type": "multi_label_classification", "id2label": dict(enumerate("abcde"))}
    model = save_model(tmp_path / "several", Swinv2ForImageClassification, **fields)
    for label in "ab":
        draw_photos(tmp_path / "labelled", 3, label)
    settings: dict[str, Any] = {"images": sorted((folder / "photos").iterdir()), "split": "train"}
    report = export_model(
        str(model), tmp_path / "out", ExportSettings("torch", evaluation=str(tmp_path / "labelled"), **settings)
    )
    found = report.sizes[0]["accuracy"]
    assert (found["score"], found["images"]) == ("mAP", 6)
    assert found["source"] == pytest.approx(found["exported"])
    model = save_model(tmp_path / "regression", Swinv2ForImageClassification, problem_type="regression")
    with pytest.raises(UsageError, match="is a regression"):
        export_model(
            str(model), tmp_path / "out2", ExportSettings("torch", evaluation=str(tmp_path / "labelled"), **settings)
        )
    with pytest.raises(UsageError, match="--int8 is for classifiers with one label"):
        export_model(
            str(model),
            tmp_path / "out2",
            ExportSettings("openvino", int8=True, calibration=settings["images"] * 2, **settings),
        )


@pytest.mark.parametrize(
    ("fields", "size", "resize", "crop"),
    [
        ({"size": {"height": 64, "width": 64}}, (40, 72), {"height": 40, "width": 72}, None),
        ({"size": {"shortest_edge": 73}, "crop_size": {"height": 64, "width": 64}, "do_center_crop": True},
         (96, 96), {"shortest_edge": 110}, {"height": 96, "width": 96}),
        ({"do_resize": False, "image_mean": 0.5, "image_std": 0.25}, (64, 64), {"height": 64, "width": 64}, None),
    ],
    ids=["resize", "crop", "neither"],
)  # fmt: skip
def test_processors(
    fields: dict[str, Any], size: tuple[int, int], resize: Any, crop: Any, folder: Path, tmp_path: Path
) -> None:
    """The folder's processor brings every image to the size of the graph."""
    shutil.copytree(folder / "model", tmp_path / "model")
    transformers.BitImageProcessor(**({"do_center_crop": False} | fields)).save_pretrained(tmp_path / "model")
    photos = sorted((folder / "photos").iterdir())
    export_model(str(tmp_path / "model"), tmp_path / "out", ExportSettings("torch", [size], images=photos))
    (found,) = json.loads((tmp_path / "out/preprocessing.json").read_text())["images"]
    assert (found["size"], found["resize"], found["centre_crop"]) == ([*size], resize, crop)


def test_rectangular_windows_and_grey_images(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' own configuration takes no such windows."""
    fields: dict[str, Any] = {"window_size": (4, 8), "pretrained_window_sizes": [(3, 3), (4, 4)], "num_channels": 1}
    peers.draw_weights(Swinv2ForImageClassification(Swinv2Config(**FIELDS | fields))).save_pretrained(
        tmp_path / "model"
    )
    make_processor(image_mean=[0.5], image_std=[0.5]).save_pretrained(tmp_path / "model")
    photos = sorted((folder / "photos").iterdir())
    export_model(str(tmp_path / "model"), tmp_path / "out", ExportSettings("torch", images=photos))
    monkeypatch.setenv(TRUST, "1")
    result = swinv2_command("classify", photos[0], "-m", tmp_path / "out")
    assert result.exit_code == 0, result.output


def test_bfloat16_in_openvino(openvino: Path, folder: Path) -> None:
    photos = folder / "photos"
    found = [
        swinv2_command("classify", photos, "-m", openvino, "--dtype", dtype, "--json", "-k", 5).stdout.splitlines()
        for dtype in ("float32", "bfloat16")
    ]
    for exact, rounded in zip(*([json.loads(line) for line in lines] for lines in found), strict=True):
        mine, theirs = ({each["label"]: each["probability"] for each in one["predictions"]} for one in (exact, rounded))
        assert mine == pytest.approx(theirs, abs=0.05)


def test_other_answers_are_not_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network of the export is spoiled: one weight of the classifier is another."""
    prepare = exporting.prepare

    def spoil(*arguments: Any) -> Any:
        network = prepare(*arguments)
        network.classifier.weight[0, 0] += 0.01
        return network

    monkeypatch.setattr(exporting, "prepare", spoil)
    with pytest.raises(UsageError, match=r"outputs differ by up to .* Nothing was written; --accept keeps it\."):
        run_export(folder, "spoiled", format="torch")
    assert not list(folder.glob("*spoiled*"))
    report = run_export(folder, "spoiled", format="torch", accepts=True)
    assert report.accepted == json.loads((folder / "spoiled/report.json").read_text())["accepted"] != []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--to", "tflite"], "--to is 'tflite'; expected openvino, onnx, torch."),
        (["--for", "torchserve"], "--for is 'torchserve'; expected triton."),
        (["--for", "triton", "--to", "torch"], "--for triton is for --to onnx and --to openvino"),
        (["--int8"], "--int8 was given without --calibrate IMAGES"),
        (["--calibrate", "photos"], "--calibrate was given without --int8"),
        (["--int8", "--calibrate", "photos", "--to", "torch"], "--int8 is not possible with --to torch"),
        (["--answers", "boxes"], "--answers is 'boxes'; expected labels, features, maps, pixels."),
        (["--image-size", "64", "--image-size", "64x64"], "--image-size was given twice for the same size"),
        (["--image-size", "0"], "--image-size"),
        (["--answers", "maps", "--evaluate", "photos"], "--evaluate measures the accuracy of a classifier"),
        (["--int8", "--calibrate", "photos", "--answers", "maps"], "--int8 is for classifiers with one label"),
        (["--int8", "--calibrate", "photos"], "--calibrate has 10 images; expected 16 at least"),
        (["--split", "test"], "--split was given without --evaluate"),
        (["--evaluate", "photos"], "photos has no labels"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_impossible_settings(
    arguments: list[str], sentence: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    result = swinv2_command("export", "model", "impossible", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert sentence in result.stderr
    assert not list(folder.glob("*impossible*"))


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_a_model_repository_for_triton(format: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's own schema reads it, and the graph answers with the names that it says."""
    from google.protobuf import text_format
    from tritonclient.grpc.model_config_pb2 import TYPE_FP32, TYPE_UINT8, ModelConfig

    monkeypatch.chdir(folder)
    name = f"triton-{format}"
    result = swinv2_command(
        "export", "model", name, "--for", "triton", "--to", format, "--uint8", "--images", "photos", "--json"
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["format"] == format
    config = text_format.Parse((folder / name / name / "config.pbtxt").read_text(), ModelConfig())
    assert (config.name, config.max_batch_size > 1) == (name, True)
    assert config.backend == {"onnx": "onnxruntime", "openvino": "openvino"}[format]
    assert [(each.name, each.data_type, [*each.dims]) for each in config.input] == [
        ("pixel_values", TYPE_UINT8, [64, 64, 3])
    ]
    assert [(each.name, each.data_type, [*each.dims], each.label_filename) for each in config.output] == [
        ("logits", TYPE_FP32, [5], "labels.txt")
    ]
    assert config.HasField("dynamic_batching")
    assert (folder / name / name / "labels.txt").read_text().split() == [*"abcde"]
    pixels = np.zeros((3, 64, 64, 3), np.uint8)
    version = folder / name / name / "1"
    if format == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(version / "model.onnx", providers=["CPUExecutionProvider"])
        (logits,) = session.run(["logits"], {"pixel_values": pixels})
    else:
        import openvino as runtime

        compiled = runtime.Core().compile_model(version / "model.xml", "CPU")
        logits = compiled({"pixel_values": pixels})["logits"]
    assert logits.shape == (3, 5)


@pytest.mark.slow
def test_the_guide(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Its commands and its program, on a small model and ten photographs."""
    text = (Path(__file__).parents[2] / "docs/guides/export.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder / "model", "my-model")
    draw_photos(Path("photos"), 20)
    for label in "ab":
        draw_photos(Path("labelled/validation"), 4, label)
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines() if line.startswith("swinv2 ")]
    assert len(commands) == 6
    for command in commands:
        # Both models are of drawn weights, and eight images are few: the accuracy is not what is tested here.
        result = swinv2_command(*shlex.split(command)[1:], *["--accept"] * ("--int8" in command))
        assert result.exit_code == 0, (command, result.output)
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    capsys.readouterr()
    exec(compile(program, "export.md", "exec"), {})
    assert capsys.readouterr().out.strip() in [*"abcde"]
    for file in re.findall(r"`(\w+\.json)`", text):
        assert Path("exported", file).is_file()
    assert Path("repository/repository/config.pbtxt").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("format", ["openvino", "onnx", "torch"])
@pytest.mark.parametrize(
    ("model_class", "answers"),
    [
        (Swinv2ForImageClassification, "features"),
        (Swinv2ForImageClassification, "maps"),
        (Swinv2ForMaskedImageModeling, None),
        (Swinv2Model, None),
        (Swinv2Backbone, None),
    ],
    ids=str,
)
def test_every_class_in_every_format(model_class: Any, answers: str | None, format: str, tmp_path: Path) -> None:
    model, photos = save_model(tmp_path / "model", model_class), draw_photos(tmp_path / "photos", 6)
    report = export_model(
        str(model), tmp_path / "out", ExportSettings(format, [(40, 72)], answers=answers, images=photos)
    )
    assert report.sizes[0]["images"] == 6


@pytest.mark.slow
@pytest.mark.parametrize("format", ["openvino", "onnx", "torch"])
@pytest.mark.parametrize("head", ["upernet", "mask2former", "rt_detr"])
@pytest.mark.usefixtures("registered")
def test_every_dense_model_in_every_format(head: str, format: str, tmp_path: Path) -> None:
    peers.draw_weights(Swinv2ForImageClassification(Swinv2Config(**SMALL))).save_pretrained(tmp_path / "checkpoint")
    # With as many queries as proposals: of equally bad ones, the last digit decides which are chosen.
    fields = SMALL_HEADS[head] | ({"num_queries": 84} if head == "rt_detr" else {})
    model: Any = from_backbone(tmp_path / "checkpoint", head, ["a", "b", "c"], **fields)
    if head == "mask2former":
        model.config.dense_task = "instances"
    model.save_pretrained(tmp_path / "model")
    make_dense_processor(model, (64, 64), [0.5] * 3, [0.5] * 3).save_pretrained(tmp_path / "model")
    settings = ExportSettings(format, images=draw_photos(tmp_path / "photos", 6))
    if (head, format) == ("rt_detr", "openvino"):
        with pytest.raises(UsageError, match="whose decoder OpenVINO computes otherwise than torch; use --to onnx"):
            export_model(str(tmp_path / "model"), tmp_path / "out", settings)
        return
    report = export_model(str(tmp_path / "model"), tmp_path / "out", settings)
    assert report.sizes[0]["images"] == 6


def assert_attention_is_exact(file: Path) -> None:
    """No product before or after a softmax takes numbers that were in int8."""
    import onnx as onnx_package

    nodes = onnx_package.load(file, load_external_data=False).graph.node
    made_by = {output: node for node in nodes for output in node.output}
    rounded = {output for node in nodes if node.op_type == "DequantizeLinear" for output in node.output}
    assert rounded
    softmaxes = [node for node in nodes if node.op_type == "Softmax"]
    assert len(softmaxes) == 3
    for softmax in softmaxes:
        product = next(made_by[name] for name in made_by[softmax.input[0]].input if name in made_by)
        after = next(node for node in nodes if softmax.output[0] in node.input)
        assert (product.op_type, after.op_type) == ("MatMul", "MatMul")
        assert not rounded & {*product.input, *after.input}


@pytest.mark.slow
@pytest.mark.parametrize("format", ["openvino", "onnx"])
def test_int8_keeps_the_accuracy(format: str, tmp_path: Path) -> None:
    """With labels and without; a classifier of drawn weights is as hard as one that has learned."""
    model = save_model(tmp_path / "model", Swinv2ForImageClassification, id2label=dict(enumerate("abcde")))
    photos = draw_photos(tmp_path / "calibrate", 40)
    for label in "abc":
        draw_photos(tmp_path / "labelled", 10, label)
    report = export_model(
        str(model),
        tmp_path / "labelled-out",
        ExportSettings(
            format, images=photos, int8=True, calibration=photos, evaluation=str(tmp_path / "labelled"), split="train"
        ),
    )
    found = report.sizes[0]["accuracy"]
    assert (found["images"], found["score"]) == (30, "top1")
    whole = export_model(str(model), tmp_path / "whole", ExportSettings(format, images=photos))
    assert report.bytes < 0.85 * whole.bytes  # most of this small model is its position bias
    estimated = export_model(str(model), tmp_path / "out", ExportSettings(format, int8=True, calibration=photos))
    if format == "onnx":
        assert_attention_is_exact(tmp_path / "out/model.onnx")
    # Every third image of --calibrate is not one that the ranges are from.
    assert estimated.sizes[0]["images"] == 13
    result = swinv2_command("classify", photos[0], "--model", tmp_path / "out")
    assert result.exit_code == 0, result.output


BY_HAND = """
import openvino, torch
import peers
from export_models import FIELDS
from swinv2 import Swinv2Config, Swinv2ForImageClassification

model = peers.draw_weights(Swinv2ForImageClassification(Swinv2Config(**FIELDS))).eval()
images = torch.randn(2, 3, 64, 64)
with torch.no_grad():
    expected = model(images).logits
exact = {"INFERENCE_PRECISION_HINT": "f32"}
compiled = openvino.compile_model(openvino.convert_model(model, example_input=images), "CPU", exact)
torch.testing.assert_close(torch.from_numpy(compiled(images)[0]), expected, rtol=0, atol=2e-5)
program = torch.onnx.export(model, (images,), dynamo=True, verbose=False)
torch.testing.assert_close(program(images)[0], expected, rtol=0, atol=2e-5)
print("both agree")
"""


@pytest.mark.slow
def test_converters_by_hand_take_the_model_as_it_is() -> None:
    """Without our form: what a user does who knows only torch and OpenVINO. In a process of its own, because both warn
    of what is deprecated in them."""
    tests = Path(__file__).parents[1]
    run = subprocess.run([sys.executable, "-c", BY_HAND], cwd=tests, capture_output=True, text=True, check=False)
    assert run.stdout.splitlines()[-1:] == ["both agree"], run.stderr


def test_the_command_knows_what_can_be_exported() -> None:
    """It names them itself, because importing the exporters takes seconds."""
    from swinv2.cli import exporting as command
    from swinv2.export.formats import FORMATS
    from swinv2.export.sources import ANSWERS

    assert (tuple(FORMATS), ANSWERS) == (command.FORMATS, command.ANSWERS)
