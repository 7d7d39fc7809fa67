"""Where each size is taken from, what is asked for where nothing tells, and that the file must agree with it."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

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


def test_windows_that_nothing_tells_are_asked_for(tmp_path: Path) -> None:
    """A timm file by itself: the sentence names the options, and that they are not those for another size."""
    source = save(foreign.timm_network(small_sizes()).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(UsageError, match=r"the window that these weights .* give --trained-window-size"):
        convert(source, None)
    with pytest.raises(UsageError, match=r"the window that these weights .* give --trained-window-size"):
        convert(source, None, image_size=64, window_size=4)
    with pytest.raises(UsageError, match=r"the image size .* give --trained-image-size"):
        convert(source, None, trained_window_size=4)
    report = convert(source, None, trained_window_size=4, trained_image_size=64)
    assert report.sources["window"] == "given"
    assert any("if that is wrong, give --pretrained-window-sizes" in note for note in report.notes)


def test_a_published_name_tells_them(tmp_path: Path) -> None:
    """The file's, or that of the folder around a name that says nothing."""
    sizes = small_sizes(image_size=256, window_size=16)
    tensors = foreign.timm_network(sizes).state_dict()
    folder = tmp_path / "swinv2_x_window12to16_192to256.mine"
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    for source in (save(tensors, tmp_path / "swinv2_x_window12to16_192to256.pth"), str(folder)):
        report = convert(source, None)
        assert (report.image_size, report.window_size) == ((256, 256), 16)
        assert [stage.learned_window for stage in report.stages] == [(12, 12), (12, 12)]
        assert report.sources["window"].startswith("the name 'swinv2_x_window12to16_192to256")


@pytest.mark.parametrize("window", [4, 16], ids=["several-windows", "clipped"])
def test_the_image_size_of_the_authors_files(window: int, tmp_path: Path) -> None:
    """Their masks show it, or it is asked for where no block is shifted; the window is in the tables."""
    file = foreign.microsoft_file(small_sizes(window_size=window))
    source = save(file, tmp_path / "weights.pth")
    expected = (
        "the image size that these weights were trained with is not known: the file has no table that shows it, no "
        "config.json next to the file says it, and the file's name is not a published one that fits. A wrong size "
        "would silently give wrong outputs, so it is not guessed: give --trained-image-size."
    )
    if window == 16:
        with pytest.raises(UsageError, match=re.escape(expected)):
            convert(source, None)
    else:
        assert convert(source, None).sources["image size"] == "the file's own tables"
    report = convert(source, None, trained_image_size=64)
    assert (report.image_size, report.window_size) == ((64, 64), window)
    assert report.sources == {
        "image size": "given",
        "window": "the file's own tables",
        "pre-training windows": "the file's own tables",
    }
    named = convert(save(file, tmp_path / f"swinv2_x_patch4_window{window}_64.pth"), None)
    assert (named.image_size, named.window_size, named.notes) == ((64, 64), window, report.notes)


def test_a_name_that_the_tables_do_not_fit_tells_nothing(tmp_path: Path) -> None:
    """Neither its window nor its image size."""
    file = foreign.microsoft_file(small_sizes(window_size=8, pretrained=(4, 3)))
    source = save(file, tmp_path / "swinv2_tiny_patch4_window16_256.pth")
    for report in (convert(source, None), convert(source, None, trained_image_size=64)):
        assert (report.image_size, report.window_size) == ((64, 64), 8)
    assert any("windows of 16 at 256 x 256 pixels. The file does not agree" in note for note in report.notes)


def test_masks_are_surer_than_a_name(tmp_path: Path) -> None:
    """The network was trained further at another size with the same window, and its file not renamed."""
    source = save(foreign.microsoft_file(small_sizes()), tmp_path / "swinv2_x_patch4_window4_128.pth")
    report = convert(source, None)
    assert report.image_size == (64, 64)
    assert any("128 x 128 pixels. The file does not agree; its sizes are used" in note for note in report.notes)


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
