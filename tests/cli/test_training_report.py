"""What a training prints before its first step."""

from pathlib import Path
from typing import Any

import pytest

from swinv2.cli.training_report import print_start

PREVIEW: dict[str, Any] = {
    "things": "images",
    "data": {"images": 110, "images_by_class": {"cat": 60, "dog": 50}},
    "steps": 210,
    "images_a_step": 16,
    "warmup_steps": 21,
    "learning_rate": 2e-3,
    "learning_rate_for_512_images": 0.064,
    "chosen": {
        "image_size": {"value": [64], "reason": "the nearest to images of 32 pixels"},
        "load_best_model_at_end": {"value": False, "reason": "10 images to evaluate are too few to choose an epoch"},
    },
}


def test_the_start_says_what_is_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    print_start(PREVIEW, Path("runs/[a]"))
    said = capsys.readouterr().err
    assert "110 images of 2 classes: cat 60, dog 50" in said
    assert "210 steps of 16 images, 21 of them warm-up" in said
    assert "runs/[a]" in said
    assert "2 settings are chosen, image_size [64]; --dry-run prints each with its reason" in said
    assert "10 images to evaluate are too few to choose an epoch" in said


def test_without_choices_nothing_is_said_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    print_start(PREVIEW | {"chosen": {}}, Path("runs"))
    assert "chosen" not in capsys.readouterr().err
