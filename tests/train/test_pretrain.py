"""Pre-training: what it leaves behind, and its masks."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import swinv2
from swinv2.errors import UsageError
from swinv2.train.pretrain import mask_maker
from trainings import CONFIG, log, losses, train


def test_what_it_leaves_behind(flags: list[str], tmp_path: Path) -> None:
    trainer = train("pretrain", flags)
    run = tmp_path / "run"
    names = {path.name for path in run.iterdir()}
    assert names == {
        *("checkpoint-12", "checkpoint-15", "final", "log.jsonl", "curves.png", "reconstructions.png"),
        "results.json",
    }
    entries = log(run)
    assert [step for step, _ in losses(run)] == list(range(1, 16))
    assert all(entry["images_per_second"] > 0 and entry["avg_distance"] > 1 for entry in entries if "loss" in entry)
    assert sum("eval_loss" in entry for entry in entries) == 3
    first, last = (entry["eval_loss"] for entry in [e for e in entries if "eval_loss" in e][::2])
    assert last < first
    assert json.loads((run / "results.json").read_text())["step"] == 15
    with Image.open(run / "reconstructions.png") as image:
        assert image.size[0] > 4 * 32
    model = swinv2.Swinv2ForMaskedImageModeling.from_pretrained(run / "final")
    assert model.config.norm_targets == 9
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("block", "ratio", "sentence"),
    [
        (3, 0.6, "a multiple of the patch size"),
        (0, 0.6, "a multiple of the patch size"),
        (8, 1.0, "expected above 0 and below 1"),
        (8, 0.0, "expected above 0 and below 1"),
        (32, 0.6, "mask the whole image"),  # one block
        (16, 0.8, "mask the whole image"),  # 4 of 4 blocks
    ],
)
def test_masks_that_are_none(block: int, ratio: float, sentence: str) -> None:
    config = swinv2.Swinv2Config(**CONFIG)
    with pytest.raises(UsageError, match=sentence):
        mask_maker(config, block, ratio)
    assert mask_maker(config, 16, 0.7)().float().mean() == 0.75
