"""torchvision's files and back: the same answers, the same file, and the call in the README builds its network."""

from pathlib import Path
from typing import Any

import pytest
import torch

import foreign
import peers
import swinv2
from conversions import NAMED, TOLERANCE, WIDE, check_answers, check_tensors, model_with, save, torchvision_network
from foreign import small_sizes
from swinv2.convert import convert
from swinv2.convert.write import state_dict


@pytest.mark.parametrize("size", [64, 96])
def test_there_and_back(size: int, tmp_path: Path) -> None:
    """The window is in the file, the size is given; key biases of zero come back."""
    network = torchvision_network((4, 4))
    file = network.state_dict()
    model = swinv2.load(save(file, tmp_path / "weights.pth"), trained_image_size=size)
    check_answers(model, network, (size, size))
    check_tensors(state_dict(model, "torchvision"), file)
    smallest = convert(str(tmp_path / "weights.pth"), None)
    assert smallest.image_size == (32, 32)
    assert any("the smallest size at which no stage clips" in note for note in smallest.notes)


@pytest.mark.parametrize("has_classes", [True, False], ids=["classifier", "no-classifier"])
def test_the_readme_builds_the_network(has_classes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its code runs as it stands, and the network computes the same."""
    file = foreign.microsoft_file(small_sizes())
    kept = {name: tensor for name, tensor in file.items() if has_classes or not name.startswith("head.")}
    source = save({"model": kept}, tmp_path / NAMED)
    convert(source, tmp_path / "out", "torchvision")
    readme = (tmp_path / "out" / "README.md").read_text()
    assert f"- classes: {5 if has_classes else 0}\n" in readme
    code: dict[str, Any] = {}
    monkeypatch.chdir(tmp_path / "out")
    exec(readme.partition("```python\n")[2].partition("```")[0], code)
    images, ours = peers.images((64, 64)), swinv2.load(source)
    with torch.no_grad():
        theirs = code["network"].eval()(images)
        answer = ours(images).logits if has_classes else ours(images).pooler_output
        assert peers.difference(answer, theirs) < TOLERANCE


def test_key_biases_are_left_out_with_a_sentence(tmp_path: Path) -> None:
    """torchvision sets them to zero before each use, so the answers do not change."""
    network = peers.torchvision_model(embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=[4, 4], num_classes=5)
    source = save(network.state_dict(), tmp_path / "weights.pth")
    report = convert(source, None, trained_image_size=64)
    assert any("key biases" in note and "features.1.0.attn.qkv.bias" in note for note in report.notes)
    check_answers(swinv2.load(source, trained_image_size=64), network)


def test_rectangular_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The window is in its tables; the call in the README builds the network again."""
    network = torchvision_network((4, 8))
    source = save(network.state_dict(), tmp_path / "weights.pth")
    model = swinv2.load(source, trained_image_size=WIDE)
    assert model.config.window_size == [4, 8]
    check_answers(model, network, WIDE)
    check_tensors(state_dict(model, "torchvision"), network.state_dict())
    smallest = convert(source, tmp_path / "out", "torchvision")
    assert (smallest.image_size, smallest.sources["window"]) == ((32, 64), "the file's own tables")
    code: dict[str, Any] = {}
    monkeypatch.chdir(tmp_path / "out")
    exec((tmp_path / "out" / "README.md").read_text().partition("```python\n")[2].partition("```")[0], code)
    check_answers(model, code["network"].eval(), WIDE)


def test_the_readme_has_the_window_of_its_call(tmp_path: Path) -> None:
    """One that small maps clip differs from what was configured; torchvision knows no pre-training windows."""
    model = model_with([[8, 8], [16, 16]])
    model.save_pretrained(tmp_path / "model")
    convert(str(tmp_path / "model"), tmp_path / "out", "torchvision")
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "- window size: [8, 8]\n" in readme
    assert "    window_size=[8, 8],\n" in readme
    assert "pre-training" not in readme
