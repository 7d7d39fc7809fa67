"""The authors' files and back: the same answers, and the same file to the bit."""

from pathlib import Path

import pytest
import torch
from transformers.models.swinv2 import modeling_swinv2 as transformers_swinv2

import foreign
import peers
import swinv2
from conversions import TOLERANCE, WIDE, check_answers, check_tensors, save
from foreign import small_sizes
from swinv2.convert import convert
from swinv2.convert.write import state_dict
from swinv2.errors import UsageError

MICROSOFT = [
    pytest.param(small_sizes(), id="several-windows"),
    pytest.param(small_sizes(window_size=8), id="one-window-in-stage-2"),
    pytest.param(small_sizes(window_size=16), id="clipped"),
    pytest.param(small_sizes(window_size=8, pretrained=(4, 3)), id="pretrained-in-others"),
    pytest.param(small_sizes(window_size=16, pretrained=(8, 8)), id="clipped-to-the-pretrained"),
]


@pytest.mark.parametrize("sizes", MICROSOFT)
def test_there_and_back(sizes: foreign.Sizes, tmp_path: Path) -> None:
    """Windows are read from the tables, the image size is given; the way back has every table to the bit."""
    network = foreign.timm_network(sizes)
    file = foreign.microsoft_file(sizes, network)
    model = swinv2.load(save({"model": file}, tmp_path / "weights.pth"), trained_image_size=64)
    stages = model.config.stages()
    assert model.config.image_size == sizes.image_size
    assert [stage.window[0] for stage in stages] == [sizes.window(0), sizes.window(1)]
    expected = [known or sizes.window(index) for index, known in enumerate(sizes.pretrained)]
    assert [stage.learned_window[0] for stage in stages] == expected
    check_answers(model, network)
    check_tensors(state_dict(model, "microsoft"), file)


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
    source = save({"model": file, "epoch": 3}, tmp_path / "weights.pth")
    model = swinv2.load(source, trained_image_size=64)
    assert isinstance(model, swinv2.Swinv2ForMaskedImageModeling)
    assert (model.config.norm_targets, model.config.encoder_stride) == (47, 8)
    images = peers.images((64, 64))
    mask = torch.rand(2, 256, generator=torch.Generator().manual_seed(0)) < 0.6
    with torch.no_grad():
        ours, theirs = model(images, mask).reconstruction, network(images, mask).reconstruction
    assert peers.difference(ours, theirs) < TOLERANCE
    newer = {name.replace("rpe_mlp", "cpb_mlp"): tensor for name, tensor in file.items()}
    check_tensors(state_dict(model, "microsoft"), newer)
    report = convert(source, tmp_path / "transformers", "transformers", trained_image_size=64)
    assert any("transformers computes the loss on plain pixels" in note for note in report.notes)
    theirs = transformers_swinv2.Swinv2ForMaskedImageModeling.from_pretrained(tmp_path / "transformers").eval()
    with torch.no_grad():
        assert torch.equal(theirs(images, mask).reconstruction, network(images, mask).reconstruction)


def test_rectangles_under_the_authors_names(tmp_path: Path) -> None:
    """Their code has none; a file whose tables and masks prove them is read."""
    config = swinv2.Swinv2Config(
        embed_dim=16, depths=[2, 2], num_heads=[2, 4], image_size=WIDE, window_size=(4, 8), num_labels=5
    )
    model = peers.draw_weights(swinv2.Swinv2ForImageClassification(config).eval())
    file = state_dict(model, "microsoft")
    source = save({"model": file}, tmp_path / "weights.pth")
    with pytest.raises(UsageError, match=r"attn_mask is not the table .* on a map of 32 x 32"):
        convert(source, None, trained_image_size=128)
    again = swinv2.load(source)
    assert tuple(again.config.image_size) == WIDE
    assert again.config.window_size == [4, 8]
    images = peers.images(WIDE)
    with torch.no_grad():
        assert torch.equal(again(images).logits, model(images).logits)
