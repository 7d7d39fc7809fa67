"""The settings of a dense training that nobody gave, chosen from the data and the model.

In: settings with the names of those that were given, and the data. Out: a value and a reason for each other setting
that matters. `docs/guides/segment.md` and `detect.md` explain the table `LENGTHS`. This module builds no model.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from swinv2.config import Swinv2Config
from swinv2.dense.saved import DETECTION, SEGMENTATION, image_scale_of, read_dense_config
from swinv2.images import BrokenImageError
from swinv2.loading import read_config
from swinv2.train.choices import (
    SMALL_NETWORK,
    Candidate,
    about_precision,
    keep_not_given,
    values_of,
    window_for,
    with_choices,
)
from swinv2.train.data.masks.dataset import MaskDataset
from swinv2.train.data.objects.dataset import ObjectDataset
from swinv2.train.dense.examples import read_pixels
from swinv2.train.dense.settings import DenseSettings, crop_size
from swinv2.train.settings import make_settings
from swinv2.train.start import NEW, given_fields, is_new_model

SAMPLED_IMAGES = 32
"""Number of training images that are opened to find their usual size."""

CROPS = (96, 128, 192, 256, 384, 512)
"""Sizes of crops in pixels to choose from."""

SHORTER = (160, 480)
"""Smallest and largest shorter side of images, in pixels, to which a detector resizes them."""

QUERY_SIZES = (256, 384, 512, 640)
"""Image sizes in pixels to choose from, for heads of queries: all images have one size."""

CHECKS = 0.2
"""The share of the training after which the model is evaluated and saved."""


class Length(NamedTuple):
    """A row of the table: the length of a training by the number of its images.

    Attributes:
        images: The row is for at most so many images.
        epochs: Epochs of a segmenter from trained weights.
        epochs_of_objects: Epochs of a detector from trained weights.
        batch: Images of a step.
    """

    images: float
    epochs: int
    epochs_of_objects: int
    batch: int


LENGTHS = (
    Length(500, 30, 16, 4),
    Length(2_000, 20, 16, 4),
    Length(10_000, 16, 12, 8),
    Length(float("inf"), 8, 12, 16),
)

ENLARGED_SIDE, MOST_ENLARGED = 512, 1.5
"""Images to segment are enlarged to this shorter side, that of the authors' segmentation, but not by a larger factor.
The training has seen them 0.5 to 2 times as large; docs/log.md has what other factors give."""

NEW_FACTOR = 2
"""So many times as many epochs from new weights."""


def dense_settings_of(told: Mapping[str, Any]) -> DenseSettings:
    """Makes the settings of a dense training. If wanted, evaluation, checkpoints and the best model are chosen first:
    they must be known before the data is opened.

    Raises:
        UsageError: A value is invalid, or conflicts with another one.
    """
    if not told.get("choose_settings"):
        return make_settings(DenseSettings, told)
    chosen = keep_not_given(told, _about_evaluation(told))
    settings = make_settings(DenseSettings, {**told, **values_of(chosen)})
    settings.chosen = chosen
    return settings


def _about_evaluation(told: Mapping[str, Any]) -> list[Candidate]:
    """Evaluation, checkpoints and the best model; nothing if when to evaluate or to save is given."""
    if {"eval_strategy", "save_strategy", "eval_steps", "save_steps"} & told.keys():
        return []
    metric = "mIoU" if told.get("task") == SEGMENTATION else "AP"
    why, best = "five evaluations", f"the evaluation of the highest {metric} is kept"
    return [
        Candidate("eval_strategy", "steps", why),
        Candidate("save_strategy", "steps", why),
        Candidate("eval_steps", CHECKS, why),
        Candidate("save_steps", CHECKS, why),
        Candidate("load_best_model_at_end", True, best),
        Candidate("metric_for_best_model", metric, best),
    ]


def with_chosen_dense_settings(settings: DenseSettings, train: MaskDataset | ObjectDataset) -> DenseSettings:
    """Chooses each setting that is not given, from the images and the model."""
    candidates = [*_about_size(settings, *_usual_sides(train)), *_about_length(settings, len(train))]
    return with_choices(settings, [*candidates, *_about_images(settings), *about_precision(settings)])


def _usual_sides(train: MaskDataset | ObjectDataset) -> tuple[int, float]:
    """Of some images, the median of the shorter sides in pixels, and of the longer sides as shares of these."""
    sides: list[tuple[int, float]] = []
    for index in np.unique(np.linspace(0, len(train) - 1, SAMPLED_IMAGES).astype(int)):
        try:
            height, width, _ = read_pixels(train[int(index)].image).shape
        except BrokenImageError:
            # The training counts unreadable images and names them.
            continue
        sides.append((min(height, width), max(height, width) / min(height, width)))
    if not sides:
        return CROPS[-1], 1.0
    shorter, longer = np.median(sides, 0).tolist()
    return int(shorter), longer


def _about_size(settings: DenseSettings, side: int, longer: float) -> list[Candidate]:
    """Image size, window and head."""
    images = f"the images have {side} pixels along the shorter side"
    saved = None if is_new_model(settings) else read_dense_config(settings.model)
    if saved is not None:
        # A saved segmenter or detector keeps its sizes.
        scale = Candidate("image_scale", image_scale_of(saved), "that of the model to start from")
        return [scale] if settings.task == SEGMENTATION else []
    found: list[Candidate] = []
    if settings.model == NEW:
        found.append(Candidate("model_fields", SMALL_NETWORK, "the network of the model that ships"))
    if settings.head in ("faster_rcnn", "mask_rcnn"):
        shorter = min(max(2 * side // 3, SHORTER[0]), SHORTER[1])
        found.append(Candidate("image_size", [shorter, round(shorter * longer)], f"{images}; two thirds of it"))
    elif settings.task == SEGMENTATION:
        crop = min(CROPS, key=lambda size: (abs(size - 2 * side / 3), size))
        if side < ENLARGED_SIDE:
            scale = min(round(ENLARGED_SIDE / side, 2), MOST_ENLARGED)
            found.append(Candidate("image_scale", scale, f"{images}; it finds more in enlarged ones"))
        found.append(Candidate("image_size", [crop], f"{images}; crops have about two thirds"))
    else:
        found.append(Candidate("image_size", [min(QUERY_SIZES, key=lambda size: abs(size - side))], images))
    config = _config_of(settings)
    if config is not None:
        wanted = crop_size(settings) or (found[-1].value[0],) * 2
        if isinstance(config.window_size, int) and settings.task == SEGMENTATION:
            window = window_for(config, wanted)
            found.append(Candidate("window_size", window, "pads the maps least", ("model_fields",)))
        found += _about_head(settings, config)
    return found


def _about_head(settings: DenseSettings, config: Swinv2Config) -> list[Candidate]:
    """Channels of the head: of small networks fewer."""
    channels = min(2 * config.embed_dim, 256)
    why = "twice as wide as the first stage of the network"
    fields: dict[str, Any] = {}
    if settings.head == "upernet" and config.embed_dim < 96:
        fields = {"hidden_size": channels}
    elif settings.head in ("faster_rcnn", "mask_rcnn") and config.embed_dim < 96:
        # Most of a step's time is for the boxes, which most images of small data sets have few of.
        fields = {"pyramid_channels": channels, "box_channels": 4 * channels, "box_batch_size_per_image": 128}
    return [Candidate("head_fields", fields, why)] if fields else []


def _config_of(settings: DenseSettings) -> Swinv2Config | None:
    """The configuration of the backbone to start from; None for presets, and for files of other libraries, which are
    known after they are loaded."""
    if settings.model == NEW:
        return Swinv2Config(**{**SMALL_NETWORK, **given_fields(settings)})
    is_unknown = is_new_model(settings) or Path(settings.model).expanduser().is_file()
    return None if is_unknown else read_config(settings.model)


def _about_length(settings: DenseSettings, images: int) -> list[Candidate]:
    """Epochs, batch, learning rates and schedule."""
    is_new = is_new_model(settings)
    row = next(row for row in LENGTHS if images <= row.images)
    epochs = row.epochs if settings.task == SEGMENTATION else row.epochs_of_objects
    devices = settings.world_size * max(settings.n_gpu, 1) * settings.gradient_accumulation_steps
    counted = f"{images:,} training images"
    why = f"{counted}, {'new' if is_new else 'trained'} weights"
    length = epochs * NEW_FACTOR if is_new else epochs
    steps = settings.max_steps if settings.max_steps > 0 else length * images // row.batch
    rate = {"mask2former": 3e-4, "rt_detr": 3e-4}.get(settings.head, 1e-3)
    found = [
        Candidate("num_train_epochs", length, why, ("max_steps",)),
        Candidate("per_device_train_batch_size", max(min(row.batch, images) // devices, 2), counted),
        Candidate("per_device_eval_batch_size", 1, "images of any size"),
        Candidate("dataloader_persistent_workers", True, "for short epochs", ("dataloader_num_workers",)),
        Candidate("warmup_steps", 0.1, "a tenth of the steps"),
        Candidate("lr_scheduler_type", "cosine", "falls to 0 at the end", ("milestones", "lr_scheduler_kwargs")),
        Candidate("logging_steps", max(1, min(50, steps // 100)), "about a hundred lines of log"),
        Candidate("learning_rate", rate, f"the head {settings.head}", ("base_rate",)),
    ]
    if not is_new:
        by_layer = ("matrix_learning_rate", "backbone_rate")
        found.append(Candidate("layer_decay", 0.75, "early layers change less", by_layer))
    return found


def _about_images(settings: DenseSettings) -> list[Candidate]:
    """Augmentation."""
    found = [Candidate("color_jitter", 0.3, "light and cameras differ")]
    if settings.task == SEGMENTATION:
        found.append(Candidate("scale_range", [0.5, 2.0], "the authors' range"))
    elif settings.task == DETECTION and settings.head == "faster_rcnn":
        found.append(Candidate("scale_range", [0.7, 1.4], "near and far objects"))
    return found
