"""What network a file holds, and of whom: every published checkpoint in every library's names.

And tensors that are not those of one whole network: missing, unknown, there twice, of the wrong shape.

Names and shapes are taken from the libraries' own classes on the meta device, or from what was written down of their
sources (`recorded/`); the rules under test have no part in them.
"""

from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from transformers.models.swinv2.configuration_swinv2 import Swinv2Config as TransformersConfig
from transformers.models.swinv2.modeling_swinv2 import Swinv2ForImageClassification as TransformersClassifier

import foreign
import swinv2
from conversions import NAMED, Damage, File, leave_out, put, refused, save, timm_name
from foreign import small_sizes
from swinv2 import Swinv2Config, Swinv2ForImageClassification
from swinv2.convert import convert
from swinv2.convert.files import Weights
from swinv2.convert.recognise import recognise
from swinv2.zoo import CHECKPOINTS, PRESETS, Checkpoint

TORCHVISION = {"swin_v2_t": "tiny", "swin_v2_s": "small", "swin_v2_b": "base"}
BLOCK = "layers.0.blocks.1."


DAMAGE = {
    "missing-matrix": (leave_out(f"{BLOCK}attn.qkv.weight"), f"missing: {BLOCK}attn.qkv.weight"),
    "missing-first": (leave_out("patch_embed.proj.weight"), "missing: patch_embed.proj.weight"),
    "missing-last": (leave_out("norm.bias"), "missing: norm.bias"),
    "missing-head-bias": (leave_out("head.bias"), "missing: head.bias"),
    "extra": (put("extra.weight", torch.ones(2)), "unknown: extra.weight"),
    "extra-norm-of-a-map": (put("norm0.weight", torch.ones(16)), "unknown: norm0.weight"),
    "extra-merging": (put("layers.1.downsample.norm.bias", torch.ones(64)), "unknown: layers.1.downsample.norm.bias"),
    "under-two-names": (
        put(f"{BLOCK}attn.rpe_mlp.0.bias", torch.ones(512)),
        f"under two names: {BLOCK}attn.rpe_mlp.0.bias",
    ),
    "wrong-shape": (put(f"{BLOCK}norm1.weight", torch.ones(17)), f"{BLOCK}norm1.weight ([17], expected [16])"),
    "wrong-rank": (put(f"{BLOCK}attn.qkv.weight", torch.ones(7)), f"{BLOCK}attn.qkv.weight ([7] cannot be divided"),
    "wrong-heads": (put(f"{BLOCK}attn.logit_scale", torch.ones(3, 1, 1)), f"{BLOCK}attn.logit_scale ([3, 1, 1]"),
    "huge-number": (
        put("layers.0.blocks.9999999999.norm1.weight", torch.ones(16)),
        "unknown: layers.0.blocks.9999999999",
    ),
}


def sizes_of(checkpoint: Checkpoint) -> foreign.Sizes:
    size = PRESETS[checkpoint.size]
    return foreign.Sizes(
        size.embed_dim,
        size.depths,
        size.num_heads,
        checkpoint.image_size,
        checkpoint.window_size,
        checkpoint.pretrained_window_sizes,
        checkpoint.num_labels,
    )


def on_meta(build: Callable[[], nn.Module]) -> dict[str, Tensor]:
    """Names and shapes of a library's network, as zeros that take no memory."""
    with torch.device("meta"):
        tensors = build().state_dict()
    return {name: torch.zeros(1, dtype=tensor.dtype).expand(tensor.shape) for name, tensor in tensors.items()}


def fits(tensors: dict[str, Tensor], dialect: str, name: str, checkpoint: Checkpoint) -> None:
    """Every tensor is known, has the shape of ours, and the configuration is that of the checkpoint."""
    recognised = recognise(Weights(tensors, name))
    assert recognised.reading.dialect.name == dialect
    expected = Swinv2Config(**checkpoint.config_fields())
    with torch.device("meta"):
        ours = {name: tensor.shape for name, tensor in Swinv2ForImageClassification(expected).state_dict().items()}
    assert {name: tensor.shape for name, tensor in recognised.reading.tensors.items()} == ours
    assert recognised.config.stages() == expected.stages()
    for field in ("image_size", "window_size", "embed_dim", "depths", "num_heads", "mlp_ratio", "num_labels"):
        assert getattr(recognised.config, field) == getattr(expected, field), field


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_the_authors(name: str) -> None:
    """From the tables and the name of the published file."""
    checkpoint = CHECKPOINTS[name]
    stem = checkpoint.source.rpartition("/")[2].removesuffix(".pth")
    fits(foreign.recorded("microsoft", sizes_of(checkpoint)), "microsoft", stem, checkpoint)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_mmpretrain(name: str) -> None:
    checkpoint = CHECKPOINTS[name]
    sizes = sizes_of(checkpoint)
    tensors = foreign.recorded("mmpretrain", sizes)
    own = f"swinv2-x-w{sizes.window_size}_in1k-{sizes.image_size}px"
    fits(tensors, "mmpretrain", own, checkpoint)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_timm(name: str) -> None:
    """The windows are in the name of the architecture."""
    checkpoint = CHECKPOINTS[name]
    theirs = timm_name(checkpoint)
    fits(on_meta(lambda: timm.create_model(theirs, pretrained=False)), "timm", theirs, checkpoint)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_transformers(name: str) -> None:
    """From the tensors and the hub's name."""
    checkpoint = CHECKPOINTS[name]
    config = TransformersConfig(**checkpoint.config_fields())
    fits(on_meta(lambda: TransformersClassifier(config)), "transformers", name, checkpoint)


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name: str) -> None:
    """torchvision's own three, of which each has the sizes of one of the authors'."""
    build = getattr(torchvision.models, name)
    tensors = on_meta(build)
    window = foreign.coordinates(8, 0), foreign.pairs(8).flatten()
    for key, tensor in tensors.items():
        table = next((table for table in window if "relative" in key and table.shape == tensor.shape), tensor)
        tensors[key] = table
    checkpoint = next(one for one in CHECKPOINTS.values() if one.size == TORCHVISION[name] and one.window_size == 8)
    fits(tensors, "torchvision", "weights", checkpoint)


def test_a_network_without_a_head(tmp_path: Path) -> None:
    """timm's and the authors' are told apart by where they merge."""
    sizes = small_sizes()
    network = foreign.timm_network(sizes)
    theirs = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("head.")}
    authors = foreign.microsoft_file(sizes, network)
    authors = {name: tensor for name, tensor in authors.items() if not name.startswith("head.")}
    given = {"trained_image_size": 64, "trained_window_size": 4}
    first = swinv2.load(save(theirs, tmp_path / "timm.pth"), **given)
    second = swinv2.load(save(authors, tmp_path / "authors.pth"), trained_image_size=64)
    assert type(first) is type(second) is swinv2.Swinv2Model
    assert convert(str(tmp_path / "timm.pth"), None, **given).dialect == "timm"
    assert convert(str(tmp_path / "authors.pth"), tmp_path / "out", trained_image_size=64).dialect == "microsoft"
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])
    swinv2.Swinv2Model.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("layers.0.blocks.1.attn.relative_position_bias_table", "they are of the first Swin Transformer"),
        ("layers.0.blocks.1.attn.meta_mlp.fc1.weight", "timm's swinv2_cr, which is not"),
    ],
)
def test_networks_of_another_kind_are_named(name: str, expected: str, file: File, tmp_path: Path) -> None:
    assert expected in refused(save(file | {name: torch.ones(49, 2)}, tmp_path / "weights.pth"), tmp_path)


@pytest.mark.parametrize(("damage", "expected"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_tensors(damage: Damage, expected: str, file: File, tmp_path: Path) -> None:
    damage(file)
    assert expected in refused(save({"model": file}, tmp_path / NAMED), tmp_path)


def test_everything_that_does_not_fit_is_in_one_error(file: File, tmp_path: Path) -> None:
    for name in ("norm.bias", f"{BLOCK}attn.q_bias"):
        del file[name]
    file |= {"first.extra": torch.ones(1), "second.extra": torch.ones(1), "head.bias": torch.ones(4)}
    sentence = refused(save({"model": file}, tmp_path / NAMED), tmp_path)
    for part in ("norm.bias", f"{BLOCK}attn.q_bias", "first.extra", "second.extra", "head.bias ([4], expected [5])"):
        assert part in sentence


@pytest.mark.parametrize(
    "first",
    ["patch_embed.proj.weight", "layers.1.blocks.{0,1}.attn.logit_scale", "layers.0.blocks.{0,1}.mlp.fc1.weight"],
)
def test_it_is_one_error_too_where_sizes_are_missing(first: str, file: File, tmp_path: Path) -> None:
    """Even the tensors that show the sizes may be among them."""
    missing = [first.replace("{0,1}", block) for block in ("0", "1")]
    missing += ["norm.bias", f"{BLOCK}attn.q_bias", f"{BLOCK}attn.qkv.weight", "layers.0.downsample.reduction.weight"]
    for name in dict.fromkeys(missing):
        del file[name]
    file["extra"] = torch.ones(1)
    sentence = refused(save({"model": file}, tmp_path / NAMED), tmp_path)
    named = sentence.partition("missing: ")[2].partition(";")[0].split(", ")
    assert sorted(named) == sorted(set(missing))
    assert "unknown: extra" in sentence


def test_a_size_of_another_rank(file: File, tmp_path: Path) -> None:
    """It is there, so it is not called missing."""
    file["patch_embed.proj.weight"] = torch.ones(16, 48)
    sentence = refused(save({"model": file}, tmp_path / NAMED), tmp_path)
    assert "patch_embed.proj.weight ([16, 48], expected 4 lengths)" in sentence
    assert "missing" not in sentence


@pytest.mark.parametrize(
    "stray",
    [
        "layers.0.blocks.3000.norm1.weight",
        "layers.9999.blocks.0.norm1.weight",
        "layers.3.blocks.0.norm1.weight",
        "layers.0.blocks.2.attn.relative_coords_table",
        "layers.70.blocks.0.attn_mask",
    ],
)
def test_blocks_with_numbers_of_their_own(
    stray: str, file: File, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are named, and nothing is built for the numbers between."""
    file[stray] = torch.ones(16)
    monkeypatch.setattr("swinv2.convert.recognise.Swinv2Config", Mock(side_effect=AssertionError))
    sentence = refused(save({"model": file}, tmp_path / NAMED), tmp_path)
    assert f"without a gap: {stray} belongs to none of the 4 blocks" in sentence


def test_more_stages_than_any_network_has(file: File, tmp_path: Path) -> None:
    for stage in range(2, 70):
        file[f"layers.{stage}.blocks.0.norm1.weight"] = torch.ones(16)
    assert "layers.69.blocks.0.norm1.weight belong to none" in refused(
        save({"model": file}, tmp_path / NAMED), tmp_path
    )
