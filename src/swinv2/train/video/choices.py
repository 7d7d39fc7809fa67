"""The settings of a training of videos that nobody gave, chosen from the data and the model.

In: settings with the names of those that were given, and the videos. Out: a value and a reason for each other setting
that matters. `docs/guides/train-video.md` explains the table `LENGTHS`. This module builds no model.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from swinv2.images import BrokenImageError
from swinv2.train.choices import (
    Candidate,
    DataFacts,
    about_evaluation,
    about_model,
    about_precision,
    keep_last,
    keep_not_given,
    values_of,
    with_choices,
)
from swinv2.train.data.videos.dataset import VideoDataset, open_segment
from swinv2.train.settings import make_settings
from swinv2.train.start import choose_normalisation, given_fields, is_new_model
from swinv2.train.video.settings import VideoSettings
from swinv2.train.video.start import starts_from_video
from swinv2.video.config import Swinv2VideoConfig
from swinv2.zoo import PRESETS

SAMPLED_VIDEOS = 16
"""Number of training videos that are opened to find their usual size and length."""

CLIP_FRAMES = 16
"""Frames of a clip: half of Video Swin's, for half of the time."""

LAYER_DECAY, INFLATED_LAYER_DECAY = 0.75, 0.9
"""Factors of the learning rate from each layer to the one before it, for models of videos and of images. With the
second one an inflated model learned the speed of clips far better (docs/log.md)."""

LEFT_OR_RIGHT = re.compile(r"(?<![a-z])(left|right)(?![a-z])", re.IGNORECASE)
"""Words in the names of classes for which clips are not mirrored."""


class Length(NamedTuple):
    """A row of the table: the length of a training by the number of its videos.

    Attributes:
        videos: The row is for at most so many videos.
        epochs: Epochs from trained weights.
        batch: Clips of a step.
    """

    videos: float
    epochs: int
    batch: int


LENGTHS = (Length(500, 30, 8), Length(5_000, 20, 8), Length(50_000, 15, 16), Length(float("inf"), 10, 32))

NEW_FACTOR = 4
"""So many times as many epochs from new weights."""


class VideoFacts(NamedTuple):
    """The median of the shorter sides of some videos, in pixels, and of their numbers of frames; None if no video is
    readable."""

    side: int | None
    frames: int | None


def video_settings_of(told: Mapping[str, Any]) -> VideoSettings:
    """Makes the settings of a training of videos; see `choices.settings_of`.

    Raises:
        UsageError: A value is invalid, or conflicts with another one.
    """
    if not told.get("choose_settings"):
        return make_settings(VideoSettings, told)
    chosen = keep_not_given(told, about_evaluation(told))
    settings = make_settings(VideoSettings, {**told, **values_of(chosen)})
    settings.chosen = chosen
    return settings


def with_chosen_video_settings(settings: VideoSettings, train: VideoDataset, evaluated: int) -> VideoSettings:
    """Chooses each setting that is not given.

    Args:
        settings: The settings.
        train: The videos to train on.
        evaluated: Number of videos to evaluate.
    """
    choose_normalisation(settings)
    facts = look_at_videos(train)
    found = about_precision(settings)
    if not starts_from_video(settings):
        found += about_model(settings, DataFacts(len(train), facts.side, True))
        found += _about_clips(settings, facts)
    found += [*_about_length(settings, len(train)), *_about_augmentation(train.names)]
    last, withdrawn = keep_last(settings, settings.early_stopping, evaluated, train.things)
    return with_choices(settings, [*found, *last], withdrawn)


def look_at_videos(train: VideoDataset) -> VideoFacts:
    """Opens some videos, spread evenly over the data set."""
    found: list[tuple[int, int]] = []
    for index in np.unique(np.linspace(0, len(train) - 1, SAMPLED_VIDEOS).astype(int)):
        try:
            info = open_segment(train[int(index)].image).info
        except BrokenImageError:
            # The training counts unreadable videos and names them.
            continue
        found.append((min(info.size), info.frames))
    if not found:
        return VideoFacts(None, None)
    side, frames = np.median(found, 0).astype(int).tolist()
    return VideoFacts(side, frames)


def _about_clips(settings: VideoSettings, facts: VideoFacts) -> list[Candidate]:
    """Number of frames, and their distance."""
    frames = settings.num_frames or CLIP_FRAMES
    stride, why = Swinv2VideoConfig.frame_stride, "that of Video Swin"
    if facts.frames is not None and facts.frames < stride * frames:
        stride, why = 1, f"the videos have {facts.frames} frames"
    return [
        Candidate("num_frames", CLIP_FRAMES, "half of Video Swin's, for half of the time"),
        Candidate("frame_stride", stride, why),
    ]


def _about_length(settings: VideoSettings, videos: int) -> list[Candidate]:
    """Epochs, batch, learning rates and schedule."""
    is_new = is_new_model(settings)
    row = next(row for row in LENGTHS if videos <= row.videos)
    devices = settings.world_size * max(settings.n_gpu, 1) * settings.gradient_accumulation_steps
    counted = f"{videos:,} training videos"
    epochs = row.epochs * NEW_FACTOR if is_new else row.epochs
    length = settings.told.get("num_train_epochs", epochs)
    steps = settings.max_steps if settings.max_steps > 0 else length * videos / row.batch
    weights = "new weights" if is_new else "trained weights"
    found = [
        Candidate("num_train_epochs", epochs, f"{counted}, {weights}", ("max_steps",)),
        Candidate("per_device_train_batch_size", max(row.batch // devices, 1), counted),
        Candidate("dataloader_persistent_workers", True, "for short epochs", ("dataloader_num_workers",)),
        Candidate("per_device_eval_batch_size", row.batch, "as in training"),
        Candidate("warmup_steps", 0.1, "a tenth of the steps"),
        Candidate("lr_scheduler_type", "cosine", "falls to 0 at the end", ("milestones", "lr_scheduler_kwargs")),
        Candidate("logging_steps", max(1, min(50, int(steps) // 100)), "about a hundred lines of log"),
        Candidate("label_smoothing_factor", 0.1, "the authors' value"),
        Candidate("learning_rate", 1e-3, weights, ("base_rate",)),
    ]
    if not is_new:
        by_layer = ("matrix_learning_rate", "backbone_rate")
        decay, why = LAYER_DECAY, "early layers change less"
        if not starts_from_video(settings):
            decay, why = INFLATED_LAYER_DECAY, "in a model of images, the early layers must learn time too"
        found.append(Candidate("layer_decay", decay, why, by_layer))
    if settings.model not in PRESETS and "drop_path_rate" not in given_fields(settings):
        found.append(Candidate("drop_path_rate", 0.1, "the usual rate of small networks"))
    return found


def _about_augmentation(names: tuple[str, ...]) -> list[Candidate]:
    """Augmentation."""
    found = [Candidate("crop_scale", [0.35, 1.0], "mild crops")]
    sided = next((name for name in names if LEFT_OR_RIGHT.search(name)), None)
    if sided is not None:
        found.append(Candidate("flip", 0.0, f"the class {sided!r} tells left from right"))
    return found
