"""A configuration is held to the tables in the file, number by number, and to what was given."""

from pathlib import Path
from typing import Any

import pytest
import torch

import foreign
import swinv2
from conversions import NAMED, WIDE, Damage, File, change, fill, model_with, put, refused, save, torchvision_network
from foreign import small_sizes
from swinv2.convert import convert
from swinv2.convert.write import state_dict
from swinv2.errors import UsageError

BLOCK = "layers.0.blocks.1."
DAMAGE = {
    "coordinates": (fill(f"{BLOCK}attn.relative_coords_table", 0.5), f"{BLOCK}attn.relative_coords_table"),
    "coordinates-of-the-first-block": (
        fill("layers.0.blocks.0.attn.relative_coords_table", 0.5),
        "layers.0.blocks.0.attn.relative_coords_table",
    ),
    "coordinates-of-no-number": (
        fill(f"{BLOCK}attn.relative_coords_table", float("nan")),
        f"{BLOCK}attn.relative_coords_table",
    ),
    "coordinates-of-another-window": (
        put(f"{BLOCK}attn.relative_coords_table", foreign.coordinates(4, 2)),
        f"{BLOCK}attn.relative_coords_table",
    ),
    "pairs": (fill(f"{BLOCK}attn.relative_position_index", 3), f"{BLOCK}attn.relative_position_index"),
    "mask": (fill(f"{BLOCK}attn_mask", -1), f"{BLOCK}attn_mask"),
    "mask-of-zeros": (change(f"{BLOCK}attn_mask", torch.zeros_like), f"{BLOCK}attn_mask"),
    "mask-all-hidden": (change(f"{BLOCK}attn_mask", lambda mask: torch.full_like(mask, -100)), f"{BLOCK}attn_mask"),
    "mask-flipped": (change(f"{BLOCK}attn_mask", lambda mask: mask.flip(0)), f"{BLOCK}attn_mask"),
    # Of as many windows, one after the other: no map has it. (A mask of another map would be the image size.)
    "mask-of-another-size": (put(f"{BLOCK}attn_mask", torch.zeros(16, 16, 16)), f"{BLOCK}attn_mask"),
    "mask-on-an-even-block": (
        put("layers.0.blocks.0.attn_mask", foreign.regions(16, 4, 2)),
        "layers.0.blocks.0.attn_mask",
    ),
}


@pytest.mark.parametrize(("damage", "table"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_tables(damage: Damage, table: str, file: File, tmp_path: Path) -> None:
    damage(file)
    sentence = refused(save({"model": file}, tmp_path / NAMED), tmp_path)
    assert sentence.startswith(f"{table} is not the table for windows of 4 x 4, ")
    assert "on a map of 16 x 16 tokens" in sentence


def test_a_mask_of_another_map_contradicts_the_next_one(file: File, tmp_path: Path) -> None:
    file[f"{BLOCK}attn_mask"] = foreign.regions(8, 4, 2)
    sentence = refused(save({"model": file}, tmp_path / NAMED), tmp_path)
    assert sentence.startswith("layers.1.blocks.1.attn_mask is not the table for windows of 4 x 4, not shifted, ")


@pytest.mark.parametrize("window", [(1, 8), (8, 1)], ids=str)
def test_windows_of_one_token(window: tuple[int, int], tmp_path: Path) -> None:
    """Coordinates along such an axis are zero divided by zero in the authors' and torchvision's code."""
    network = torchvision_network(window)
    tables = [tensor for name, tensor in network.state_dict().items() if name.endswith("relative_coords_table")]
    assert any(bool(table.isnan().any()) for table in tables)
    model = swinv2.load(save(network.state_dict(), tmp_path / "weights.pth"), trained_image_size=WIDE)
    assert model.config.stages()[0].window == window


def test_a_key_bias_that_is_not_zero(tmp_path: Path) -> None:
    """timm's and transformers' keys have none; a file that has one is of another network."""
    file = foreign.timm_network(small_sizes()).state_dict()
    arguments = {"trained_image_size": 64, "trained_window_size": 4}
    file["layers.0.blocks.0.attn.k_bias"] = torch.zeros(16)
    convert(save(file, tmp_path / NAMED), None, **arguments)
    file["layers.0.blocks.0.attn.k_bias"][3] = 1e-3
    sentence = refused(save(file, tmp_path / NAMED), tmp_path, **arguments)
    assert "layers.0.blocks.0.attn.k_bias is not zero" in sentence


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"trained_window_size": 8}, r"is not the table for windows of 8 x 8.*window: given"),
        (
            {"trained_image_size": 10**6, "trained_window_size": 10**5},
            "is not the table for windows of 100000 x 100000",
        ),
        ({"trained_image_size": 10**6}, r"attn_mask is not the table .* on a map of 250000 x 250000"),
        ({"trained_image_size": 128}, r"attn_mask is not the table .* on a map of 32 x 32.*image size: given"),
        ({"pretrained_window_sizes": [6, 6]}, r"is not the table .* learned in 6 x 6 .*pre-training windows: given"),
        ({"pretrained_window_sizes": [6]}, "expected one for each of the 2 stages"),
        ({"trained_window_size": [4, 4, 4]}, r"trained_window_size is \[4, 4, 4\]; .* one for each of the 2 stages"),
        ({"trained_window_size": (4, 8)}, "is not the table for windows of 4 x 8"),
        ({"trained_image_size": 0}, "trained_image_size"),
    ],
)
def test_what_is_given_must_agree_with_the_file(given: dict[str, Any], expected: str, tmp_path: Path) -> None:
    file = foreign.microsoft_file(small_sizes(window_size=4, pretrained=(3, 3)))
    with pytest.raises(UsageError, match=expected):
        convert(save(file, tmp_path / NAMED), None, **given)


def test_what_is_given_must_agree_with_the_configuration(tmp_path: Path) -> None:
    """A folder of this package knows what it was trained with; the options for that change nothing."""
    file = foreign.microsoft_file(small_sizes())
    convert(save(file, tmp_path / NAMED), tmp_path / "model")
    convert(str(tmp_path / "model"), None, trained_window_size=4, trained_image_size=64)
    with pytest.raises(UsageError, match=r"says that it was trained with .*use --image-size and --window-size"):
        convert(str(tmp_path / "model"), None, trained_window_size=8)


def test_another_spelling_of_the_same_windows_is_no_contradiction(tmp_path: Path) -> None:
    """Given beside a config.json, and beside a published name."""
    model = model_with(16)
    model.save_pretrained(tmp_path / "model")
    convert(str(tmp_path / "model"), None, trained_window_size=[(16, 16), (8, 8)])
    with pytest.raises(UsageError, match=r"window_size 16, but \[\[16, 16\], \[4, 4\]\] was given"):
        convert(str(tmp_path / "model"), None, trained_window_size=[(16, 16), (4, 4)])
    source = save(state_dict(model, "timm"), tmp_path / "swinv2_tiny_window16_64.pth")
    for windows, notes in (([(16, 16), (8, 8)], 0), ([(16, 16), (4, 4)], 1)):
        report = convert(source, None, trained_window_size=windows)
        assert sum("The file does not agree" in note for note in report.notes) == notes
