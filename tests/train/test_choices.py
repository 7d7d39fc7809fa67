"""Settings that are chosen from the data and the model."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

import peers
import swinv2
from colours import draw_colours
from swinv2.train.choices import LENGTHS, SMALL_NETWORK, DataFacts, look_at_data, with_chosen_settings
from swinv2.train.data.dataset import ImageDataset
from swinv2.train.data.sources import open_dataset
from swinv2.train.settings import FinetuneSettings, make_settings
from swinv2.zoo import PRESETS
from trainings import CONFIG


@pytest.fixture
def trained(tmp_path: Path) -> str:
    """The folder of a model that was trained at 32 pixels."""
    model = peers.draw_weights(swinv2.Swinv2ForImageClassification(swinv2.Swinv2Config(**CONFIG)))
    model.save_pretrained(tmp_path / "trained")
    return str(tmp_path / "trained")


def made(images: int, side: int, colour: bool = True) -> ImageDataset:
    """So many images of one size."""
    pixels = np.zeros((side, side + 20, 3), np.uint8)
    pixels[:, :, 0] = 200
    if not colour:
        pixels[:] = 7
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = datasets.Dataset.from_dict({"image": [pixels] * 2, "label": [0, 1]}, features=features)
    rows = rows.cast_column("image", datasets.Image(decode=False))
    return ImageDataset(rows, "image", "label", ("a", "b"), "made", chosen=np.arange(images) % 2)


def chosen(train: ImageDataset, **told: Any) -> FinetuneSettings:
    needed = {"data": "d", "output_dir": "o", "use_cpu": True, "report_to": "none"}
    return with_chosen_settings(make_settings(FinetuneSettings, needed | told), train)


def test_it_looks_at_the_size_and_the_colours() -> None:
    assert look_at_data(made(300, 50), 3) == DataFacts(300, 50, True)
    assert look_at_data(made(300, 50, colour=False), 3) == DataFacts(300, 50, False)
    assert look_at_data(made(10, 50), 1) == DataFacts(10, 50, False)


def test_unreadable_images_are_passed_over(tmp_path: Path) -> None:
    draw_colours(tmp_path / "data", 3)
    (tmp_path / "data" / "red" / "0.png").write_bytes(b"no image")
    assert look_at_data(open_dataset(str(tmp_path / "data"), "train"), 3) == DataFacts(9, 40, True)


@pytest.mark.parametrize("row", range(len(LENGTHS) - 1))
def test_the_length_follows_the_table(row: int, trained: str) -> None:
    few, many = LENGTHS[row], LENGTHS[row + 1]
    for images, wanted in ((int(few.images), few), (int(few.images) + 1, many)):
        train = made(images, 32)
        settings = chosen(train, model=trained)
        assert (settings.num_train_epochs, settings.train_batch_size) == (wanted.epochs, wanted.batch)
        assert chosen(train, model="new").num_train_epochs == wanted.epochs_of_new


def test_small_images_stay_small(trained: str) -> None:
    assert chosen(made(9, 95), model=trained).image_size == []
    assert chosen(made(9, 96), model=trained).image_size == [128]
    assert chosen(made(9, 95), model="new").image_size == [64]
    assert chosen(made(9, 500), model="new").image_size == [128]
    # The models of the paper have their own sizes.
    assert chosen(made(9, 500), model="tiny").image_size == []
    assert chosen(made(9, 500), model="new", model_fields='{"image_size": 96}').image_size == []


def test_new_weights_learn_with_muon_and_trained_ones_with_layer_decay(trained: str) -> None:
    fresh, kept = chosen(made(9, 32), model="new"), chosen(made(9, 32), model=trained)
    assert fresh.model_fields == SMALL_NETWORK
    assert fresh.matrix_learning_rate > 0
    assert fresh.layer_decay == 1.0
    assert kept.matrix_learning_rate == 0.0
    assert kept.layer_decay < 1.0


def test_grey_images_are_not_mirrored(trained: str) -> None:
    grey, coloured = (chosen(made(9, 32, colour), model=trained) for colour in (False, True))
    assert (grey.flip, grey.color_jitter) == (0.0, 0.0)
    assert coloured.flip == 0.5
    assert coloured.color_jitter > 0.0


def test_a_given_setting_is_kept_even_if_it_is_the_default(trained: str) -> None:
    defaults = FinetuneSettings.defaults()
    for name in chosen(made(9, 32), model=trained).chosen:
        settings = chosen(made(9, 32), model=trained, **{name: defaults[name]})
        assert name not in settings.chosen
        assert getattr(settings, name) == defaults[name] or name == "per_device_eval_batch_size"


@pytest.mark.parametrize("model", ["new", "trained"])
@pytest.mark.parametrize(
    "told",
    [
        {"matrix_learning_rate": 2e-3},
        {"layer_decay": 0.9},
        {"base_rate": 1e-3},
        {"milestones": [0.5]},
        {"max_steps": 7},
        {"auto_augment": "rand-m9-mstd0.5-inc1"},
        {"crop_padding": 4},
        {"lora": True},
        {"optim": "sgd"},
        {"fp16": False},
        {"streaming": True, "max_steps": 7},
    ],
    ids=lambda told: next(iter(told)),
)
def test_choices_do_not_conflict_with_what_is_given(told: dict[str, Any], model: str, trained: str) -> None:
    settings = chosen(made(9, 32), model=trained if model == "trained" else model, **told)
    assert not told.keys() & settings.chosen.keys()
    assert {name: settings.told[name] for name in told} == told


def test_the_small_network_is_a_model() -> None:
    assert "new" not in PRESETS
    assert swinv2.Swinv2Config(**SMALL_NETWORK, image_size=64).checked().num_layers == 4


def test_the_preview_gives_the_reasons(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    from swinv2.cli import training

    keep = ("--data", "--output_dir", "--model", "--model_fields", "--report_to", "--use_cpu")
    pairs = zip(flags[::2], flags[1::2], strict=True)
    few = [part for name, value in pairs if name in keep for part in (name, value)]
    assert training.train("finetune", [*few, "--dry-run", "--as-json"]) == 0
    preview = json.loads(capsys.readouterr().out)
    assert preview["chosen"]["num_train_epochs"] == {
        "value": LENGTHS[0].epochs_of_new,
        "reason": "36 training images, new weights",
    }
    assert preview["chosen"]["eval_strategy"]["value"] == "epoch"
    assert "model_fields" not in preview["chosen"]
    assert training.train("finetune", [*few, "--dry-run"]) == 0
    assert "36 training images, new weights" in capsys.readouterr().out
    assert training.train("finetune", [*few, "--choose-settings", "false", "--dry-run", "--as-json"]) == 0
    assert json.loads(capsys.readouterr().out)["chosen"] == {}
