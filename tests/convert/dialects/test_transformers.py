"""transformers' folders and back: the same answers, the same tensors, and its own class opens what is written."""

import re
from pathlib import Path

import pytest
import torch
from transformers.models.swinv2 import modeling_swinv2 as transformers_swinv2

import foreign
import peers
import swinv2
from conversions import TOLERANCE, check_tensors
from swinv2.convert import convert
from swinv2.errors import UsageError


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
def test_there_and_back(kind: str, newer: bool, tmp_path: Path) -> None:
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
    check_tensors(dict(ours.state_dict()), file)
    theirs = getattr(transformers_swinv2, kind).from_pretrained(tmp_path / "ours").eval()
    images = peers.images((64, 64))
    with torch.no_grad():
        expected, again = network(images)[0], theirs(images)[0]
        assert torch.equal(expected, again)
        assert peers.difference(ours(images)[0], expected) < TOLERANCE


def test_old_folders_hold_tables(tmp_path: Path) -> None:
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
    with pytest.raises(UsageError, match=r"_table is not the table .* learned in 8 x 8 .*window: config.json"):
        convert(str(tmp_path), None)
