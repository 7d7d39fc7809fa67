"""Settings that are chosen from the data and the model."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

import peers
import swinv2
from colours import draw_colours
from swinv2.errors import UsageError
from swinv2.predict.shipped import shipped_model
from swinv2.train.choices import (
    LENGTHS,
    SMALL_NETWORK,
    DataFacts,
    look_at_data,
    settings_of,
    with_chosen_settings,
)
from swinv2.train.data.dataset import ImageDataset
from swinv2.train.data.sources import open_dataset
from swinv2.train.settings import FinetuneSettings
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


def chosen(train: ImageDataset, to_evaluate: int = 200, **told: Any) -> FinetuneSettings:
    return with_chosen_settings(evaluated(**told), train, made(to_evaluate, 32) if to_evaluate else None)


def evaluated(**told: Any) -> FinetuneSettings:
    """Settings as the command makes them, before the data is opened."""
    needed = {"data": "d", "model": "new", "output_dir": "o", "use_cpu": True, "report_to": "none"}
    return settings_of(needed | {"choose_settings": True} | told)


def test_it_looks_at_the_size_and_the_colours() -> None:
    assert look_at_data(made(300, 50), 3) == DataFacts(300, 50, True)
    assert look_at_data(made(300, 50, colour=False), 3) == DataFacts(300, 50, False)
    # Models of other channels get no augmentation of colours.
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


def test_many_classes_need_more_epochs(trained: str) -> None:
    """9,000 images of 100 classes are 90 of each, as 900 of ten."""
    many = replace(made(9_000, 32), names=tuple(map(str, range(100))))
    settings = chosen(many, model=trained)
    assert (settings.num_train_epochs, settings.train_batch_size) == (LENGTHS[1].epochs, LENGTHS[2].batch)
    assert settings.chosen["num_train_epochs"].reason == "9,000 training images, 100 classes, trained weights"


@pytest.mark.parametrize(
    ("side", "new", "shipped", "tiny"),
    [(30, [64], [64], []), (79, [64], [64], []), (81, [96], [], [96]), (500, [128], [128], [128])],
)
def test_the_image_size_is_near_that_of_the_images(
    side: int, new: list[int], shipped: list[int], tiny: list[int], trained: str
) -> None:
    images = made(9, side)
    assert chosen(images, model="new").image_size == new
    # Trained at 96 and at 32 pixels.
    assert chosen(images, model=str(shipped_model())).image_size == shipped
    assert chosen(images, model=trained).image_size == tiny
    # The models of the paper have their own sizes.
    assert chosen(images, model="tiny").image_size == []
    assert chosen(images, model="new", model_fields='{"image_size": 96}').image_size == []


@pytest.mark.parametrize(("side", "window"), [(30, 8), (90, 12), (500, 8)])
def test_windows_divide_the_maps(side: int, window: int) -> None:
    """Maps of 16, 24 and 32 tokens; of 40 if the size is given."""
    for model in ("new", str(shipped_model())):
        settings = chosen(made(9, side), model=model)
        assert settings.window_size == (None if side == 90 and model != "new" else window)
        given = chosen(made(9, side), model=model, image_size=[160])
        assert (given.image_size, given.window_size) == ([160], 10)
        rectangle = chosen(made(9, side), model=model, image_size=[64, 128])
        assert (rectangle.image_size, rectangle.window_size) == ([64, 128], 8)
        assert chosen(made(9, side), model=model, window_size=5).window_size == 5


def test_an_impossible_size_is_an_error() -> None:
    with pytest.raises(UsageError, match="--image-size is impossible: image_size"):
        chosen(made(9, 32), model=str(shipped_model()), image_size=[-64])


@pytest.mark.parametrize(
    ("fields", "side", "image_size", "window_size"),
    [
        ({"image_size": 80}, 80, [], None),
        ({"image_size": 112}, 110, [], None),
        ({"image_size": (64, 128)}, 300, [], None),
        ({"image_size": 200}, 30, [], None),
        ({"image_size": 64, "window_size": [[8, 8], [4, 4]]}, 300, [128], None),
    ],
    ids=str,
)
def test_a_models_own_size_and_windows(
    fields: dict[str, Any], side: int, image_size: list[int], window_size: int | None, tmp_path: Path
) -> None:
    """Its own size if that is as near; never of a rectangle, or beyond 128; windows of each stage are kept."""
    swinv2.Swinv2Model(swinv2.Swinv2Config(**(CONFIG | fields))).save_pretrained(tmp_path / "own")
    settings = chosen(made(9, side), model=str(tmp_path / "own"))
    assert (settings.image_size, settings.window_size) == (image_size, window_size)


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
    assert grey.crop_scale[0] > coloured.crop_scale[0]
    assert coloured.flip == 0.5
    assert coloured.color_jitter > 0.0


def test_a_given_setting_is_kept_even_if_it_is_the_default(trained: str) -> None:
    defaults = FinetuneSettings.defaults()
    for name in chosen(made(9, 32), model=trained).chosen:
        settings = chosen(made(9, 32), model=trained, **{name: defaults[name]})
        assert name not in settings.chosen
        # transformers itself replaces these two if they are None.
        assert getattr(settings, name) == defaults[name] or name in ("metric_for_best_model", "eval_steps")


@pytest.mark.parametrize("model", ["new", "trained"])
@pytest.mark.parametrize(
    "told",
    [
        {"matrix_learning_rate": 2e-3},
        {"adam_beta2": 0.95},
        {"early_stopping": 5},
        {"early_stopping": 0},
        {"save_strategy": "best"},
        {"load_best_model_at_end": True},
        {"load_best_model_at_end": False},
        {"eval_strategy": "no"},
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
@pytest.mark.parametrize("to_evaluate", [200, 30])
def test_choices_do_not_conflict_with_what_is_given(
    told: dict[str, Any], model: str, to_evaluate: int, trained: str
) -> None:
    settings = chosen(made(9, 32), to_evaluate, model=trained if model == "trained" else model, **told)
    assert not told.keys() & settings.chosen.keys()
    assert {name: settings.told[name] for name in told} == told


@pytest.mark.parametrize(
    ("told", "evaluates", "saves", "keeps_best"),
    [
        ({}, "epoch", "epoch", True),
        ({"save_strategy": "epoch"}, "epoch", "epoch", True),
        ({"eval_strategy": "steps"}, "steps", "steps", True),
        ({"save_steps": 10}, "steps", "steps", True),
        ({"eval_steps": 10}, "steps", "steps", True),
        ({"save_strategy": "no"}, "epoch", "no", False),
        ({"eval_strategy": "no"}, "no", "steps", False),
        ({"eval_strategy": "epoch", "save_strategy": "steps"}, "epoch", "steps", False),
        ({"streaming": True, "max_steps": 3}, "no", "steps", False),
    ],
    ids=str,
)
def test_evaluation_and_saving_belong_together(
    told: dict[str, Any], evaluates: str, saves: str, keeps_best: bool
) -> None:
    settings = evaluated(**told)
    assert (settings.eval_strategy, settings.save_strategy) == (evaluates, saves)
    assert settings.load_best_model_at_end == keeps_best
    if "save_steps" in told or "eval_steps" in told:
        assert settings.eval_steps == settings.save_steps == 10


def test_few_images_to_evaluate_choose_no_epoch(trained: str) -> None:
    many, few, none = (chosen(made(9, 32), count, model=trained) for count in (200, 199, 0))
    assert many.load_best_model_at_end
    assert (many.metric_for_best_model, few.metric_for_best_model) == ("top1", None)
    assert "199 images" in few.chosen["load_best_model_at_end"].reason
    assert "metric_for_best_model" not in few.chosen
    assert many.early_stopping > 0
    never = chosen(made(9, 32), 30, model=trained, early_stopping=0)
    for settings in (few, none, never):
        assert (settings.load_best_model_at_end, settings.early_stopping) == (False, 0)
    best = chosen(made(9, 32), 30, model=trained, save_strategy="best")
    assert (best.load_best_model_at_end, best.metric_for_best_model) == (True, "top1")
    given = chosen(made(9, 32), 30, model=trained, metric_for_best_model="top1", early_stopping=3)
    assert (given.metric_for_best_model, given.early_stopping) == ("top1", 3)


def test_what_is_given_decides_what_depends_on_it(trained: str) -> None:
    long = chosen(made(9, 32), model=trained, num_train_epochs=300)
    assert long.early_stopping == 100
    assert chosen(made(9, 32), model=trained, max_steps=1000).early_stopping == 0
    assert chosen(made(9, 32), model=trained, max_steps=1000).logging_steps == 10
    assert chosen(made(9, 32), model=trained, gradient_accumulation_steps=4).train_batch_size == LENGTHS[0].batch // 4
    fields = {**SMALL_NETWORK, "drop_path_rate": 0.3, "image_size": 32}
    assert chosen(made(9, 32), model_fields=json.dumps(fields)).drop_path_rate is None
    assert chosen(made(9, 32), model="tiny").drop_path_rate is None


def test_bad_fields_are_an_error() -> None:
    with pytest.raises(UsageError, match="expected an object such as"):
        chosen(made(9, 32), model_fields="[64]")


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
    assert preview["data"]["images_by_class"] == {"blue": 12, "green": 12, "red": 12}
    assert "model_fields" not in preview["chosen"]
    assert training.train("finetune", [*few, "--dry-run"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "36 training images, new weights" in said
    assert "3 classes: blue 12, green 12, red 12" in said
    assert training.train("finetune", [*few, "--choose-settings", "false", "--dry-run", "--as-json"]) == 0
    assert json.loads(capsys.readouterr().out)["chosen"] == {}
