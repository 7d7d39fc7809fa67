"""The command line as a user meets it: what goes to stdout, what to stderr, and the exit status."""

import ast
import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors import safe_open
from torch import nn
from transformers import ViTImageProcessor
from typer.testing import CliRunner, Result

import swinv2
from swinv2 import Swinv2Config, Swinv2ForImageClassification
from swinv2.cli import app, printing
from swinv2.console import shown
from swinv2.predict import shipped
from swinv2.predict.describe import describe
from swinv2.predict.predictor import Prediction

LABELS = ["ant", "bee [bold]", "cat", "dog"]


def swinv2_command(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="swinv2")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random small model, with samples as the shipped one has."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    size = {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
    network = Swinv2ForImageClassification(Swinv2Config(**size, id2label=dict(enumerate(LABELS))))
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5)
    network.save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    (folder / "samples").mkdir()
    for index, label in enumerate(["cat", "dog", "ant"]):
        save_noise(folder / "samples" / f"{index:02d}_{label}.png", index)
    return folder


def save_noise(path: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of three sound images and a broken one."""
    folder = tmp_path / "images"
    folder.mkdir()
    for seed, name in enumerate(["photo 2.png", "photo 10.png", "[red]x.png"]):
        save_noise(folder / name, seed)
    (folder / "photo 3.jpg").write_text("broken")
    return folder


def test_version_and_help() -> None:
    assert swinv2_command("--version").stdout == f"swinv2 {swinv2.__version__}\n"
    assert "classify" in swinv2_command("--help").stdout
    for command in ("info", "classify", "features", "demo"):
        result = swinv2_command(command, "--help")
        assert result.exit_code == 0
        assert len(result.stdout) > 100


def seconds_of_children() -> float:
    """What the processes that have ended took of processors, whatever else ran beside them."""
    times = os.times()
    return times.children_user + times.children_system


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["classify", "--help"], 0),
        (["info", "--help"], 0),
        (["evaluate", "--help"], 0),
        (["clasify"], 2),
        (["--nonsense"], 2),
        (["classify", "--nonsense"], 2),
        (["info"], 2),
        (["classify", "--batch-size", "0"], 2),
        (["classify"], 2),
        (["classify", "a.png", "--json", "--csv"], 2),
        (["info", "tiny", "--image-size", "wide"], 2),
        (["convert", "weights.pth"], 2),
        (["pretrain", "--help"], 0),
        (["finetune", "--help"], 0),
        (["finetune", "-h"], 0),
        (["finetune", "--wieght-decay", "1"], 2),
        (["finetune", "--weight_decay", "much"], 2),
        (["pretrain", "--data"], 2),
        (["pretrain", "--data", "a", "--model", "tiny"], 2),
        (["pretrain", "--config", "nowhere.yaml"], 2),
    ],
)
def test_help_and_refusals_import_nothing_that_takes_long(arguments: list[str], status: int) -> None:
    script = (
        "import sys\n"
        "from swinv2.cli import app\n"
        "try:\n"
        "    app()\n"
        "finally:\n"
        "    heavy = ('torch', 'transformers', 'numpy', 'PIL', 'pyarrow')\n"
        "    print('imported:', *(name for name in heavy if name in sys.modules), file=sys.stderr)\n"
    )
    before = seconds_of_children()
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=60)
    # A third of a second where nothing else runs; torch and transformers take three and more.
    assert seconds_of_children() - before < 1.5
    assert done.returncode == status, done.stderr
    assert done.stderr.splitlines()[-1].strip() == "imported:"
    assert "Traceback" not in done.stderr


def test_the_package_imports_a_name_when_it_is_asked_for() -> None:
    script = (
        "import pickle, sys, swinv2\n"
        "assert set(swinv2.__all__) | {'__version__'} <= set(dir(swinv2))\n"
        "assert 'torch' not in sys.modules\n"
        "from swinv2 import *\n"
        "from swinv2.config import Swinv2Config as same\n"
        "assert Swinv2Config is same is swinv2.Swinv2Config\n"
        "assert all(name in globals() for name in swinv2.__all__)\n"
        "assert pickle.loads(pickle.dumps(Swinv2Config)) is same\n"
        "swinv2.register()\n"
        "assert not hasattr(swinv2, 'nonsense')\n"
        "try:\n"
        "    from swinv2 import nonsense\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("cannot import name 'nonsense' from 'swinv2'")


def test_what_type_checkers_see_is_what_there_is() -> None:
    """The names that are imported for type checkers are those that are imported when they are asked for."""
    tree = ast.parse(Path(swinv2.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {name.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for name in node.names}
    assert seen == {name: f"swinv2.{home}" for name, home in swinv2._HOMES.items()}
    assert sorted(seen) == swinv2.__all__


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


def test_classify_takes_the_shipped_model_and_says_so(
    model: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipped, "FOLDER", model)
    result = swinv2_command("classify", images / "photo 2.png")
    assert result.exit_code == 0
    assert "no --model given: using the CIFAR-10 model that ships with the package" in result.stderr
    assert "--model microsoft/" in result.stderr
    monkeypatch.setattr(shipped, "FOLDER", model / "gone")
    result = swinv2_command("classify", images / "photo 2.png")
    assert result.exit_code == 2
    assert "reinstall the package" in result.stderr


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_classify_in_low_precision(model: Path, images: Path, precision: str) -> None:
    assert swinv2_command("classify", images / "photo 2.png", "-m", model, "--dtype", precision).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["classify"], "no image was given"),
        (["classify", "gone"], "no such file or folder"),
        (["classify", "IMAGES", "--json", "--csv"], "choose one"),
        (["classify", "IMAGES", "-m", "./gone"], "there is no folder './gone'"),
        (["classify", "IMAGES", "-m", "IMAGES"], "it has no config.json"),
        (["classify", "IMAGES", "-m", "microsoft/swinv2-tiny-patch4-window8-256"], "Without --model"),
        (["classify", "IMAGES", "-m", "MODEL", "--device", "gpu"], "device 'gpu'"),
        (["classify", "IMAGES", "-m", "MODEL", "--dtype", "int8"], "--dtype is 'int8'; expected float32, bfloat16"),
        (["classify", "IMAGES", "-m", "MODEL", "--top-k", "0"], "--top-k"),
        (["classify", "IMAGES", "-m", "MODEL", "--batch-size", "0"], "--batch-size"),
        (["features", "IMAGES", "-m", "MODEL"], "--output"),
        (["features", "-o", "a.parquet", "-m", "MODEL"], "no image was given"),
        (["features", "IMAGES", "-m", "MODEL", "-o", "a.npy"], ".safetensors or .parquet"),
        (["features", "IMAGES", "-m", "MODEL", "-o", "a.parquet", "--stage", "stage9"], "pooled, stem, stage1, stage2"),
        (["info", "giant"], "giant-1b or giant-3b"),
        (["info", "IMAGES"], "it has no config.json"),
        (["info"], "MODEL"),
        (["info", "tiny", "--batch-size", "2"], "no effect without --memory"),
        (["info", "tiny", "--image-size", "wide"], "pixels such as 256"),
        (["info", "MODEL", "--image-size", "0"], "--image-size"),
        (["info", "tiny", "--window-size", "0"], "--window-size is '0'; expected tokens such as 8"),
        (["info", "tiny", "--window-size", "8,8,4"], "one for each of the 4 stages"),
    ],
)
def test_what_the_user_can_mend_is_one_sentence(
    model: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"IMAGES": images, "MODEL": model}
    result = swinv2_command(*(names.get(argument, argument) for argument in arguments))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    if result.stderr.startswith("error: "):
        assert result.stderr.count("\n") == 1


def test_too_little_memory_is_a_sentence(model: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Swinv2ForImageClassification, "forward", fail)
    result = swinv2_command("classify", images / "photo 2.png", "-m", model)
    assert result.exit_code == 2
    assert "--batch-size" in result.stderr


def test_an_output_that_cannot_be_made_is_a_sentence(model: Path, images: Path, tmp_path: Path) -> None:
    """Its name, and why."""
    (tmp_path / "taken").write_text("a file")
    for output in (tmp_path / "taken", tmp_path / "taken" / "folder"):
        result = swinv2_command("evaluate", images, "--model", model, "--output", output)
        assert result.exit_code == 2
        assert "Traceback" not in result.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("arguments", [["info", "tiny"], ["classify", "--csv"]])
def test_a_full_disk_is_a_sentence(model: Path, images: Path, arguments: list[str]) -> None:
    """Of a command that ends well, and of one that skips a file and ends with a status of its own."""
    given = [str(images), "-m", str(model)] if arguments[0] == "classify" else []
    script = "from swinv2.cli import app; app()"
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments, *given],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "error: no space is left on the disk; the output is incomplete."
    assert "Traceback" not in done.stderr


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


def test_info(model: Path) -> None:
    result = swinv2_command("info", model)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "16 x 16 pixels" in result.stdout
    assert "ant, bee [bold], cat, dog" in result.stdout
    assert " runs: " in result.stdout
    description = json.loads(swinv2_command("info", "tiny", "--json").stdout)
    assert description["parameters"] == 27_578_154
    assert [stage["grid"] for stage in description["stages"]] == [[64, 64], [32, 32], [16, 16], [8, 8]]
    assert "87.6%" in swinv2_command("info", "microsoft/swinv2-large-patch4-window12to24-192to384-22kto1k-ft").stdout


def test_info_at_another_size(model: Path) -> None:
    """Windows are planned for it, the position bias extrapolated; memory is worked out for it."""
    described = json.loads(
        swinv2_command("info", "tiny", "--image-size", "512x384", "--window-size", "16", "--json").stdout
    )
    assert described["stages"][0]["grid"] == [128, 96]
    assert {(tuple(stage["window"]), tuple(stage["pretrained_window"])) for stage in described["stages"]} == {
        *(((16, 16), (8, 8)), ((16, 12), (8, 8)))
    }
    assert "memory_mib" not in described
    described = json.loads(swinv2_command("info", "tiny", "--window-size", "4x16,8x4,8,4", "--json").stdout)
    assert [(stage["window"], stage["shift"]) for stage in described["stages"]] == [
        ([4, 16], [2, 8]),
        ([8, 4], [4, 2]),
        ([8, 8], [4, 4]),
        ([4, 4], [2, 2]),
    ]
    result = swinv2_command("info", model, "--memory", "--batch-size", "2", "--world-size", "4")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "2 images on each process, shared by 4 processes" in result.stdout
    assert result.stdout.count("computed again") == 1
    ways = json.loads(swinv2_command("info", model, "--memory", "--json").stdout)["memory_mib"]
    assert [way["checkpointed"] for way in ways] == [False, True]


def test_demo_counts_what_is_right(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "FOLDER", model)
    result = swinv2_command("demo")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert [line.split()[:2] for line in lines[1:4]] == [
        ["00_cat.png", "cat"],
        ["01_dog.png", "dog"],
        ["02_ant.png", "ant"],
    ]
    num_right = sum("✓" in line for line in lines)
    assert num_right + sum("✗" in line for line in lines) == 3
    assert lines[-1] == f"{num_right} of 3 right"
    (model / "samples" / "03_dog.png").write_text("")
    assert "reinstall the package" in swinv2_command("demo").stderr
    (model / "samples" / "03_dog.png").unlink()


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_tables_fit_a_terminal_of_eighty_columns(encoding: str) -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    console = Console(file=file, force_terminal=True, width=80, color_system=None, legacy_windows=False)
    printing.print_description(describe("giant-3b"), console)
    sample = shipped.Sample(Path("00_cat.png"), "cat")
    printing.print_demo([sample, sample], [Prediction(0, "cat", 1.0), Prediction(1, "dog", 0.5)], console)
    printing.print_labels([(Path("x" * 100 + ".png"), [Prediction(0, "cat", 1.0)])], console)
    file.flush()
    text = raw.getvalue().decode(encoding)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "2,149,996" in text
    assert "…" not in text
    assert ("✓" in text) == (encoding == "utf-8")


def test_odd_file_names_are_shown_without_harm() -> None:
    assert shown(Path("a\x1b[31m.png")) == repr("a\x1b[31m.png")
    assert shown(Path("a\udcff.png")) == "a\ufffd.png"
