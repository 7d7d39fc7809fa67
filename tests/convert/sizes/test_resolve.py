"""Where each size is taken from, and what is asked for where nothing tells."""

import re
from pathlib import Path

import pytest
from safetensors.torch import save_file

import foreign
from conversions import save
from foreign import small_sizes
from swinv2.convert import convert
from swinv2.errors import UsageError


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
