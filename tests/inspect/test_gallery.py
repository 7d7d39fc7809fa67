"""`swinv2 inspect`: the files, their numbers, and what is refused."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import ViTImageProcessor

from commands import swinv2_command
from swinv2 import Swinv2Config, Swinv2ForImageClassification, Swinv2Model
from swinv2.images import read_image
from swinv2.inspect import gallery
from swinv2.inspect.gallery import Inspector

inspect = partial(swinv2_command, "inspect")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random small model, whose maps are 9 x 12 and, merged, 5 x 6 tokens: neither is whole windows."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    size = {"image_size": [18, 24], "patch_size": 2, "embed_dim": 8, "depths": [2, 2], "num_heads": [1, 2]}
    network = Swinv2ForImageClassification(Swinv2Config(**size, window_size=4, num_labels=3))
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    network.save_pretrained(folder)
    ViTImageProcessor(size={"height": 18, "width": 24}).save_pretrained(folder)
    return folder


@pytest.fixture
def image(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty files in place of images: drawing takes its time, and has tests of its own."""

    def touch(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    monkeypatch.setattr(gallery, "draw_attention", lambda attentions, rgb, sizes, path, title: touch(path))
    monkeypatch.setattr(gallery, "draw_components", lambda maps, rgb, sizes, path, title: touch(path))
    monkeypatch.setattr(gallery, "draw_bias", lambda fields, path, title: touch(path))
    monkeypatch.setattr(gallery, "draw_amplitudes", lambda models, path, title: touch(path))


def test_files_and_numbers(model: Path, image: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "folder"
    result = inspect(image, "--model", model, "-o", output, "--token", "119,0", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    names = ["attention-photo.png", "features-photo.png", "bias.png", "amplitudes.png"]
    assert [Path(name).name for name in found["images"][0]["files"] + found["files"]] == names
    assert sorted(path.name for path in output.iterdir()) == sorted(names)
    for name in names:
        assert f"drawn: {output / name}" in result.stderr
        with Image.open(output / name) as drawn:
            drawn.load()
            assert min(drawn.size) > 200

    (about,) = found["images"]
    assert about["size"] == [120, 90]
    assert about["pixel"] == [23, 0]
    assert about["seen"] == pytest.approx([0, 0, 120, 90], abs=0.01)
    first, second = about["stages"]
    assert (first["stage"], first["block"], first["token"]) == (1, 2, [0, 11])
    assert (second["stage"], second["block"], second["token"]) == (2, 2, [0, 5])
    assert (first["window"], first["shift"]) == ([4, 4], [2, 2])
    assert found["amplitudes"][0]["attention"] is None
    assert len(found["amplitudes"]) == 1 + 2 + 2
    assert [len(each["lowest"]) for each in found["bias"]] == [1, 2]

    # What the token keeps for itself, from the model called by hand: the first row's last token, shifted up and left by
    # two, stands in the fourth row of windows' corner.
    network = Swinv2Model.from_pretrained(model, attn_implementation="eager").eval()
    pixels = ViTImageProcessor.from_pretrained(model)(images=read_image(image), return_tensors="pt")
    with torch.no_grad():
        weights = network(**pixels, output_attentions=True).attentions[0]
    # 12 x 12 tokens with their padding: row 0 goes to 10, column 11 to 9; window (2, 2), place (2, 1) in it.
    window, place = 2 * 3 + 2, 2 * 4 + 1
    assert first["on_itself"] == pytest.approx([float(weights[window, 0, place, place])], rel=1e-4)


@pytest.mark.usefixtures("undrawn")
def test_one_stage_and_the_centre(model: Path, image: Path, tmp_path: Path) -> None:
    result = inspect(image, "-m", model, "-o", tmp_path / "out", "--stage", "stage2", "--json")
    found = json.loads(result.stdout)
    assert [each["stage"] for each in found["images"][0]["stages"]] == [2]
    assert found["images"][0]["pixel"] == [12, 9]
    assert found["images"][0]["stages"][0]["token"] == [9 // 4, 12 // 4]
    assert len(found["bias"]) == 1
    assert len(found["amplitudes"]) == 5


@pytest.mark.usefixtures("undrawn")
def test_several_images_of_one_name_and_a_broken_one(model: Path, image: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        (folder / name / "photo.png").write_bytes(image.read_bytes())
    (folder / "c.png").write_text("broken")
    result = inspect(folder, "-m", model, "-o", tmp_path / "out", "--json")
    assert result.exit_code == 1
    assert "1 of 3 images skipped" in result.stderr
    found = json.loads(result.stdout)
    assert sorted(each.get("error", "") for each in found["images"]) == ["", "", "not an image"]
    assert {path.name for path in (tmp_path / "out").glob("attention-*")} == {
        "attention-photo.png",
        "attention-photo-2.png",
    }
    # Twice the same image: the amplitudes are those of one.
    alone = json.loads(inspect(image, "-m", model, "-o", tmp_path / "out", "--json").stdout)
    for one, two in zip(alone["amplitudes"], found["amplitudes"], strict=True):
        assert one["main"] == pytest.approx(two["main"], rel=1e-9)
    broken = inspect(folder / "c.png", "-m", model, "-o", tmp_path / "none", "--json")
    assert broken.exit_code == 1
    assert json.loads(broken.stdout)["files"] == []
    assert not (tmp_path / "none").exists()


def test_the_same_command_draws_the_same_figures(model: Path, image: Path, tmp_path: Path) -> None:
    for output in (tmp_path / "one", tmp_path / "two"):
        assert inspect(image, "-m", model, "-o", output, "--stage", "stage1").stdout == ""
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no image was given"),
        (["IMAGE", "-m", "MODEL", "--token", "5"], "--token is '5'; expected X,Y"),
        (["IMAGE", "-m", "MODEL", "--token", "120,0"], "the image has 120 x 90 pixels"),
        (["IMAGE", "-m", "MODEL", "--stage", "stem"], "--stage is 'stem'; the model"),
        (["IMAGE", "-m", "./gone"], "there is no folder './gone'"),
        (["IMAGE", "-m", "MODEL", "-o", "IMAGE"], "cannot be written to"),
    ],
)
def test_what_the_user_can_mend(model: Path, image: Path, arguments: list[str], message: str) -> None:
    names = {"IMAGE": image, "MODEL": model}
    result = inspect(*(names.get(argument, argument) for argument in arguments))
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


@pytest.mark.usefixtures("undrawn")
def test_inspecting_leaves_the_model_as_it_was(model: Path, image: Path, tmp_path: Path) -> None:
    inspector = Inspector.load(str(model), device="cpu")
    before = {name: value.clone() for name, value in inspector.model.state_dict().items()}
    assert len(list(inspector.inspect([image], tmp_path))) == 1
    assert all(torch.equal(value, before[name]) for name, value in inspector.model.state_dict().items())
    assert not any(module._forward_hooks for module in inspector.model.modules())
