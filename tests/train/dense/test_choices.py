"""What is chosen for a segmenter or a detector if nothing is given."""

from pathlib import Path
from typing import Any

import pytest

from scenes import write_checkpoint, write_masks, write_objects
from swinv2.train.dense.choices import LENGTHS, dense_settings_of, with_chosen_dense_settings
from swinv2.train.dense.start import choose_dense_normalisation
from swinv2.train.dense.trainer import open_dense_training


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_checkpoint(tmp_path_factory.mktemp("checkpoint")))


def chosen(task: str, data: Path, model: str, **told: Any) -> Any:
    """The settings of a training on this data."""
    given = {"task": task, "data": str(data), "model": model, "output_dir": "run", "choose_settings": True, **told}
    settings = dense_settings_of(given)
    choose_dense_normalisation(settings)
    return with_chosen_dense_settings(settings, open_dense_training(settings)[0])


def test_of_a_segmenter(checkpoint: str, tmp_path: Path) -> None:
    data = write_masks(tmp_path, count=6, sizes=((300, 400),))
    settings = chosen("segmentation", data, checkpoint)
    assert settings.head == "upernet"
    # The nearest to two thirds of 300 pixels.
    assert settings.image_size == [192]
    assert settings.image_scale == 1.5
    assert settings.head_fields == {"hidden_size": 32}
    assert (settings.num_train_epochs, settings.per_device_train_batch_size) == (LENGTHS[0].epochs, 4)
    assert (settings.learning_rate, settings.layer_decay) == (1e-3, 0.75)
    assert (settings.eval_strategy, settings.save_strategy, settings.eval_steps) == ("steps", "steps", 0.2)
    assert (settings.metric_for_best_model, settings.load_best_model_at_end) == ("mIoU", True)
    assert settings.scale_range == [0.5, 2.0]
    # 48, 24, 12 and 6 tokens: windows of 4 fit, and of 3.
    assert settings.window_size in (3, 4)
    assert all(choice.reason for choice in settings.chosen.values())


def test_of_a_detector(checkpoint: str, tmp_path: Path) -> None:
    data = write_objects(tmp_path, count=6, sizes=((300, 400),))
    settings = chosen("detection", data, checkpoint)
    # Two thirds of 300 pixels, and their aspect ratio.
    assert (settings.head, settings.image_size, settings.window_size) == ("faster_rcnn", [200, 267], None)
    assert settings.head_fields == {"pyramid_channels": 32, "box_channels": 128, "box_batch_size_per_image": 128}
    assert settings.num_train_epochs == LENGTHS[0].epochs_of_objects
    assert settings.metric_for_best_model == "AP"


def test_what_is_given_is_kept(checkpoint: str, tmp_path: Path) -> None:
    data = write_masks(tmp_path, count=6)
    told = {"image_size": [128], "num_train_epochs": 3.0, "learning_rate": 2e-3, "head_fields": {"hidden_size": 8}}
    settings = chosen("segmentation", data, checkpoint, eval_strategy="no", **told)
    assert {name: getattr(settings, name) for name in told} == told
    assert not told.keys() & settings.chosen.keys()
    assert settings.eval_strategy == "no"
    assert settings.metric_for_best_model is None


def test_new_weights_learn_longer(tmp_path: Path) -> None:
    data = write_masks(tmp_path, count=6)
    settings = chosen("segmentation", data, "new")
    assert settings.num_train_epochs == 2 * LENGTHS[0].epochs
    assert settings.layer_decay == 1.0
    assert settings.model_fields["embed_dim"] == 64
