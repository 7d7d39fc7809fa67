"""From every library and back: the same answers, and the same file to the bit.

The peers are built by their own libraries; the authors' and mmpretrain's files are laid out by hand, see `foreign`.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.models.swinv2 import modeling_swinv2 as transformers_swinv2

import foreign
import peers
import swinv2
from foreign import small_sizes
from swinv2.convert import convert
from swinv2.convert.write import state_dict
from swinv2.errors import UsageError

TOLERANCE = 1e-5
"""Of an answer, in units of the distance between two images' answers."""


def equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """The same names with the same numbers of the same type, to the bit."""
    assert sorted(ours) == sorted(theirs)
    differing = [
        name for name in ours if ours[name].dtype != theirs[name].dtype or not torch.equal(ours[name], theirs[name])
    ]
    assert differing == []


def answers_are_equal(model: nn.Module, network: Callable[[Tensor], Tensor], size: int = 64) -> None:
    pictures = peers.images((size, size))
    with torch.no_grad():
        assert peers.difference(model(pictures).logits, network(pictures)) < TOLERANCE


def save(tensors: Any, path: Path) -> str:
    torch.save(tensors, path)
    return str(path)


MICROSOFT = [
    pytest.param(small_sizes(), id="several-windows"),
    pytest.param(small_sizes(window_size=8), id="one-window-in-stage-2"),
    pytest.param(small_sizes(window_size=16), id="clipped"),
    pytest.param(small_sizes(window_size=8, pretrained=(4, 3)), id="pretrained-in-others"),
    pytest.param(small_sizes(window_size=16, pretrained=(8, 8)), id="clipped-to-the-pretrained"),
]


@pytest.mark.parametrize("sizes", MICROSOFT)
def test_the_authors(sizes: foreign.Sizes, tmp_path: Path) -> None:
    """Sizes and windows are read from the tables; the way back has every table to the bit."""
    network = foreign.timm_network(sizes)
    file = foreign.microsoft_file(sizes, network)
    model = swinv2.load(save({"model": file}, tmp_path / "weights.pth"))
    stages = model.config.stages()
    assert model.config.image_size == sizes.image_size
    assert [stage.window[0] for stage in stages] == [sizes.window(0), sizes.window(1)]
    expected = [known or sizes.window(index) for index, known in enumerate(sizes.pretrained)]
    assert [stage.learned_window[0] for stage in stages] == expected
    answers_are_equal(model, network)
    equal(state_dict(model, "microsoft"), file)


@pytest.mark.parametrize("older", [False, True], ids=["cpb_mlp", "rpe_mlp"])
def test_simmim(older: bool, tmp_path: Path) -> None:
    """A pre-trained model with mask token and decoder, as the authors released them."""
    sizes = small_sizes(window_size=4)
    network = peers.transformers_model(
        "Swinv2ForMaskedImageModeling",
        **{name: list(value) if isinstance(value, tuple) else value for name, value in foreign.SMALL.items()},
        image_size=64,
        window_size=4,
        encoder_stride=8,
    )
    file = foreign.simmim_file(sizes, network, older)
    model = swinv2.load(save({"model": file, "epoch": 3}, tmp_path / "weights.pth"))
    assert isinstance(model, swinv2.Swinv2ForMaskedImageModeling)
    assert (model.config.norm_targets, model.config.encoder_stride) == (47, 8)
    pictures = peers.images((64, 64))
    mask = torch.rand(2, 256, generator=torch.Generator().manual_seed(0)) < 0.6
    with torch.no_grad():
        ours, theirs = model(pictures, mask).reconstruction, network(pictures, mask).reconstruction
    assert peers.difference(ours, theirs) < TOLERANCE
    newer = {name.replace("rpe_mlp", "cpb_mlp"): tensor for name, tensor in file.items()}
    equal(state_dict(model, "microsoft"), newer)
    report = convert(str(tmp_path / "weights.pth"), tmp_path / "transformers", "transformers")
    assert any("transformers' loss is of plain pixels" in note for note in report.notes)
    theirs = transformers_swinv2.Swinv2ForMaskedImageModeling.from_pretrained(tmp_path / "transformers").eval()
    with torch.no_grad():
        assert torch.equal(theirs(pictures, mask).reconstruction, network(pictures, mask).reconstruction)


@pytest.mark.parametrize("pretrained", [(0, 0), (4, 3)], ids=["same", "pretrained-in-others"])
def test_timm(pretrained: tuple[int, ...], tmp_path: Path) -> None:
    """timm's file says nothing of windows; they are given, or its config.json has them."""
    sizes = small_sizes(window_size=8, pretrained=pretrained)
    network = foreign.timm_network(sizes)
    file = network.state_dict()
    model = swinv2.load(
        save(file, tmp_path / "weights.pth"),
        trained_image_size=64,
        trained_window_size=8,
        pretrained_window_sizes=pretrained,
    )
    answers_are_equal(model, network)
    equal(state_dict(model, "timm"), file)


def test_timm_builds_the_folder_that_is_written(tmp_path: Path) -> None:
    """`local-dir:` of create_model, with no other argument; and the folder comes back."""
    sizes = small_sizes(window_size=8, pretrained=(4, 3))
    network = foreign.timm_network(sizes)
    source = save({"model": foreign.microsoft_file(sizes, network)}, tmp_path / "weights.pth")
    report = convert(source, tmp_path / "timm", "timm")
    assert report.files == ["config.json", "model.safetensors"]
    built = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    pictures = peers.images((64, 64))
    with torch.no_grad():
        assert torch.equal(built(pictures), network(pictures))
    back = convert(str(tmp_path / "timm"), tmp_path / "back")
    assert [stage.learned_window for stage in back.stages] == [(4, 4), (3, 3)]
    assert back.sources["window"] == "config.json"
    equal(state_dict(swinv2.load(tmp_path / "back"), "timm"), network.state_dict())


@pytest.mark.parametrize("has_classes", [True, False], ids=["classifier", "no-classifier"])
def test_the_readme_for_torchvision_builds_the_network(
    has_classes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its code runs as it stands, and the network computes the same."""
    file = foreign.microsoft_file(small_sizes())
    kept = {name: tensor for name, tensor in file.items() if has_classes or not name.startswith("head.")}
    source = save({"model": kept}, tmp_path / "weights.pth")
    convert(source, tmp_path / "out", "torchvision")
    readme = (tmp_path / "out" / "README.md").read_text()
    assert f"- classes: {5 if has_classes else 0}\n" in readme
    code: dict[str, Any] = {}
    monkeypatch.chdir(tmp_path / "out")
    exec(readme.partition("```python\n")[2].partition("```")[0], code)
    pictures, ours = peers.images((64, 64)), swinv2.load(source)
    with torch.no_grad():
        theirs = code["network"].eval()(pictures)
        answer = ours(pictures).logits if has_classes else ours(pictures).pooler_output
        assert peers.difference(answer, theirs) < TOLERANCE


def test_timm_builds_a_network_without_a_classifier(tmp_path: Path) -> None:
    """It has no classes then, and no names of them."""
    network = foreign.timm_network(small_sizes())
    file = foreign.microsoft_file(small_sizes(), network)
    bare = {name: tensor for name, tensor in file.items() if not name.startswith("head.")}
    convert(save({"model": bare}, tmp_path / "weights.pth"), tmp_path / "timm", "timm")
    config = json.loads((tmp_path / "timm" / "config.json").read_text())
    assert (config["num_classes"], config["pretrained_cfg"]["num_classes"]) == (0, 0)
    assert "label_names" not in config
    built = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    pictures = peers.images((64, 64))
    with torch.no_grad():
        assert torch.equal(built(pictures), network.forward_head(network.forward_features(pictures), pre_logits=True))
    assert type(swinv2.load(tmp_path / "timm")) is swinv2.Swinv2Model


@pytest.mark.parametrize("size", [64, 96])
def test_torchvision(size: int, tmp_path: Path) -> None:
    """The window is in the file, the size is given; key biases of zero come back."""
    network = peers.torchvision_model(embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=[4, 4], num_classes=5)
    for name, parameter in network.named_parameters():
        if name.endswith("qkv.bias"):
            parameter.data.view(3, -1)[1].zero_()
    file = network.state_dict()
    model = swinv2.load(save(file, tmp_path / "weights.pth"), trained_image_size=size)
    answers_are_equal(model, network, size)
    equal(state_dict(model, "torchvision"), file)
    smallest = convert(str(tmp_path / "weights.pth"), None)
    assert smallest.image_size == (32, 32)
    assert any("the smallest size at which no stage clips" in note for note in smallest.notes)


def test_torchvisions_key_biases_are_left_out_with_a_sentence(tmp_path: Path) -> None:
    """torchvision sets them to zero before each use, so the answers do not change."""
    network = peers.torchvision_model(embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=[4, 4], num_classes=5)
    source = save(network.state_dict(), tmp_path / "weights.pth")
    report = convert(source, None, trained_image_size=64)
    assert any("key biases" in note and "features.1.0.attn.qkv.bias" in note for note in report.notes)
    answers_are_equal(swinv2.load(source, trained_image_size=64), network)


@pytest.mark.parametrize("bare", [False, True], ids=["classifier", "bare-backbone"])
def test_mmpretrain(bare: bool, tmp_path: Path) -> None:
    """The order of torch's Unfold is undone and done again; the last norm bears its stage's number."""
    sizes = small_sizes(window_size=8, pretrained=(4, 3))
    network = foreign.timm_network(sizes)
    file = foreign.mmpretrain_file(sizes, network)
    assert "backbone.norm1.weight" in file
    stored = {name.removeprefix("backbone."): tensor for name, tensor in file.items()} if bare else file
    model = swinv2.load(save({"meta": {}, "state_dict": stored}, tmp_path / "weights.pth"), trained_image_size=64)
    answers_are_equal(model, network)
    equal(state_dict(model, "mmpretrain"), file)


def test_the_unfold_order_is_torchs() -> None:
    """mmpretrain's merging, with torch's own Unfold, is ours."""
    sizes = small_sizes()
    file = foreign.mmpretrain_file(sizes)
    ours = foreign.microsoft_file(sizes)["layers.0.downsample.reduction.weight"]
    feature_map = torch.randn(1, 16, 6, 8)
    unfolded = nn.Unfold(kernel_size=2, stride=2)(feature_map).transpose(1, 2)
    theirs = unfolded @ file["backbone.stages.1.downsample.reduction.weight"].T
    parts = [feature_map[..., row::2, column::2] for column in (0, 1) for row in (0, 1)]
    joined = torch.cat(parts, dim=1).flatten(2).transpose(1, 2)
    torch.testing.assert_close(theirs, joined @ ours.T)


def new_names(name: str) -> str:
    """transformers' names inside its classes since it rewrote them."""
    for old, new in {
        "attention.self.query.": "attention.q_proj.",
        "attention.self.key.": "attention.k_proj.",
        "attention.self.value.": "attention.v_proj.",
        "attention.output.dense.": "attention.o_proj.",
        "attention.self.": "attention.",
        "intermediate.dense.": "mlp.fc1.",
    }.items():
        name = name.replace(old, new)
    return re.sub(r"(?<=\d\.)output\.dense\.", "mlp.fc2.", name)


@pytest.mark.parametrize("newer", [False, True], ids=["older", "newer"])
@pytest.mark.parametrize("kind", ["Swinv2ForImageClassification", "Swinv2ForMaskedImageModeling", "Swinv2Model"])
def test_transformers(kind: str, newer: bool, tmp_path: Path) -> None:
    """Its folders under older and newer names, every head; and its own class reads what is written."""
    fields = {name: list(value) if isinstance(value, tuple) else value for name, value in foreign.SMALL.items()}
    network = peers.transformers_model(
        kind,
        **fields,
        image_size=64,
        window_size=8,
        pretrained_window_sizes=[4, 3],
        encoder_stride=8,
        num_labels=5,
    )
    file = dict(network.state_dict())
    stored = {new_names(name): tensor for name, tensor in file.items()} if newer else file
    if newer:
        assert any(".attention.q_proj." in name for name in stored)
        assert any(".mlp.fc2." in name for name in stored)
    folder = tmp_path / "theirs"
    folder.mkdir()
    network.config.save_pretrained(folder)
    torch.save(stored, folder / "pytorch_model.bin")
    convert(str(folder), tmp_path / "ours", "transformers")
    ours = swinv2.load(tmp_path / "ours")
    assert type(ours).__name__ == kind
    equal(dict(ours.state_dict()), file)
    theirs = getattr(transformers_swinv2, kind).from_pretrained(tmp_path / "ours").eval()
    pictures = peers.images((64, 64))
    with torch.no_grad():
        expected, again = network(pictures)[0], theirs(pictures)[0]
        assert torch.equal(expected, again)
        assert peers.difference(ours(pictures)[0], expected) < TOLERANCE


def test_old_transformers_folders_hold_tables(tmp_path: Path) -> None:
    """They are held to the configuration beside them, and left out."""
    fields = {name: list(value) if isinstance(value, tuple) else value for name, value in foreign.SMALL.items()}
    network = peers.transformers_model("Swinv2ForImageClassification", **fields, image_size=64, window_size=8)
    tables = {
        f"swinv2.encoder.layers.{stage}.blocks.{block}.attention.self.relative_coords_table": foreign.coordinates(8, 0)
        for stage in range(2)
        for block in range(2)
    }
    network.config.save_pretrained(tmp_path)
    torch.save(network.state_dict() | tables, tmp_path / "pytorch_model.bin")
    assert convert(str(tmp_path), None).left_out == 4
    wrong = {name: foreign.coordinates(8, 4) for name in tables}
    torch.save(network.state_dict() | wrong, tmp_path / "pytorch_model.bin")
    with pytest.raises(UsageError, match=r"learned in windows of 4 x 4 in stage 1; .* from config.json say 8 x 8"):
        convert(str(tmp_path), None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_types_are_kept(dtype: torch.dtype, tmp_path: Path) -> None:
    """16 and 64 bits go through to the bit, in tables of the same type too."""
    sizes = small_sizes(window_size=8, pretrained=(4, 3))
    file = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in foreign.microsoft_file(sizes).items()
    }
    report = convert(save({"model": file}, tmp_path / "weights.pth"), tmp_path / "out")
    assert report.dtype == str(dtype).removeprefix("torch.")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == report.dtype
    model = swinv2.load(tmp_path / "out")
    back = state_dict(model, "microsoft")
    learned = {name: tensor for name, tensor in file.items() if "relative" not in name and "mask" not in name}
    equal({name: back[name] for name in learned}, learned)


def test_mixed_types_become_the_widest_with_a_sentence(tmp_path: Path) -> None:
    file = foreign.microsoft_file(small_sizes())
    file["head.weight"] = file["head.weight"].half()
    report = convert(save({"model": file}, tmp_path / "weights.pth"), None)
    assert report.dtype == "float32"
    assert "The weights are of float16 and float32; all became float32." in report.notes


@pytest.mark.parametrize("format", ["swinv2", "transformers", "timm", "torchvision", "microsoft", "mmpretrain"])
def test_every_format_is_read_again(format: str, tmp_path: Path) -> None:
    """What is written in any format, loads again as the same network."""
    sizes = small_sizes()
    network = foreign.timm_network(sizes)
    source = save({"model": foreign.microsoft_file(sizes, network)}, tmp_path / "weights.pth")
    report = convert(source, tmp_path / format, format)
    has_names = format in ("swinv2", "transformers", "timm")
    assert any("names of the classes are not in the folder" in note for note in report.notes) != has_names
    sized = {"trained_image_size": 64} if format in ("torchvision", "mmpretrain") else {}
    answers_are_equal(swinv2.load(tmp_path / format, **sized), network)
    again = convert(str(tmp_path / format), tmp_path / "again", format, **sized)
    for name in again.files:
        first, second = (tmp_path / format / name), (tmp_path / "again" / name)
        if name == "model.safetensors":
            equal(load_file(first), load_file(second))
        elif name == "model.pth":
            loaded = [torch.load(path, weights_only=True) for path in (first, second)]
            inner = {"microsoft": "model", "mmpretrain": "state_dict"}.get(format)
            equal(*(content[inner] if inner else content for content in loaded))
        else:
            assert first.read_text() == second.read_text(), name
