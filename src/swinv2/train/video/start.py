"""The model of videos that a training starts from.

In: settings and the names of the classes. Out: a classifier of videos in fp32 on the CPU: a saved one, possibly for
clips of another size; a model of images, inflated; or a new one. This module knows no data and no trainer.
"""

import logging
from typing import Any

from swinv2.errors import UsageError
from swinv2.heads import Swinv2ForImageClassification
from swinv2.lengths import Windows, as_windows
from swinv2.loading import is_video_model
from swinv2.train.optim.groups import freeze_stages
from swinv2.train.start import (
    build_or_load,
    choose_normalisation,
    given_image_size,
    is_new_model,
    load_to_train,
    model_fields,
)
from swinv2.train.video.settings import VideoSettings
from swinv2.video.config import Swinv2VideoConfig
from swinv2.video.inflate import NUM_FRAMES, TUBELET_SIZE, WINDOW_FRAMES, inflate
from swinv2.video.models import Swinv2ForVideoClassification

logger = logging.getLogger(__name__)


def video_model_to_train(settings: VideoSettings, names: tuple[str, ...]) -> Swinv2ForVideoClassification:
    """Builds the classifier for the classes of the data.

    Mean and deviation of the channels become settings, if they are not given.

    Args:
        settings: The settings.
        names: Names of the classes.

    Raises:
        UsageError: The model cannot be loaded, is no classifier of three channels, or a setting is impossible.
    """
    choose_normalisation(settings)
    fields = model_fields(settings)
    fields |= {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    fields["problem_type"] = "single_label_classification"
    model = _saved(settings, fields) if starts_from_video(settings) else _inflated(settings, fields)
    config = model.config
    if config.num_channels != 3:
        raise UsageError(f"--model {settings.model!r} has not three channels, which frames of videos have.")
    if settings.frame_stride is not None:
        config.frame_stride = settings.frame_stride
    if settings.classifier_dropout is not None:
        config.classifier_dropout_prob = model.dropout.p = settings.classifier_dropout
    freeze_stages(model, settings.frozen_stages)
    return model


def starts_from_video(settings: VideoSettings) -> bool:
    """Whether `--model` is a model of videos."""
    return not is_new_model(settings) and is_video_model(settings.model)


def _inflated(settings: VideoSettings, fields: dict[str, Any]) -> Swinv2ForVideoClassification:
    """A model of images, stored or new, that is inflated."""
    image_model = build_or_load(Swinv2ForImageClassification, settings, fields, ("classifier.",))
    frames, tubelet = settings.num_frames or NUM_FRAMES, settings.tubelet_size or TUBELET_SIZE
    try:
        inflated = inflate(image_model, frames, tubelet, settings.window_frames or WINDOW_FRAMES)
    except ValueError as error:
        raise UsageError(f"--num-frames, --tubelet-size or --window-frames is impossible: {error}") from error
    assert isinstance(inflated, Swinv2ForVideoClassification)
    if not is_new_model(settings) and not settings.resume_from_checkpoint:
        logger.warning(f"{settings.model} is a model of images; it is inflated for clips of {frames} frames")
    return inflated


def _saved(settings: VideoSettings, fields: dict[str, Any]) -> Swinv2ForVideoClassification:
    """A saved model of videos, for clips of the size that is given."""
    model = load_to_train(Swinv2ForVideoClassification, settings, fields, ("classifier.",))
    config = model.config
    if settings.tubelet_size not in (None, config.tubelet_size):
        raise UsageError(
            f"--tubelet-size is {settings.tubelet_size}, and {settings.model!r} has patches of {config.tubelet_size} "
            "frames, which its weights are made for; leave it out, or start from a model of images."
        )
    size, windows = given_image_size(settings), _windows(settings, config)
    if settings.num_frames is None and size is None and windows is None:
        return model
    try:
        model.set_clip_size(settings.num_frames or config.num_frames, size, windows, settings.stretch_bias)
    except ValueError as error:
        raise UsageError(
            f"--num-frames, --image-size, --window-frames or --window-size is impossible: {error}"
        ) from error
    return model


def _windows(settings: VideoSettings, config: Swinv2VideoConfig) -> Windows | None:
    """The windows (frames, height, width) of each stage, if any of them is given; the rest stays."""
    if settings.window_frames is None and settings.window_size is None:
        return None
    now = config.stage_windows
    given: Any = settings.window_size
    sides = [window[1:] for window in now] if given is None else as_windows("window_size", given, len(now))
    return [(settings.window_frames or old[0], *new) for old, new in zip(now, sides, strict=True)]
