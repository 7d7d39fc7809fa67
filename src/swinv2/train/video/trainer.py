"""Training of classifiers of videos.

In: settings. Out: a trainer, ready to run. Loss, schedule, checkpoints and scores are those of classifiers of images.

Source: Liu et al., Video Swin Transformer (arXiv 2106.13230), section 4.1.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn

from swinv2.errors import UsageError
from swinv2.lengths import as_pair, in_words
from swinv2.train.data.augment import Pixels
from swinv2.train.data.classes import classes_to_train
from swinv2.train.data.examples import EvaluationExamples, SampleTransform, TrainingExamples
from swinv2.train.data.videos.opening import open_videos
from swinv2.train.finetune import FinetuneTrainer, class_weights, match_evaluation
from swinv2.train.running import prepare_run, read_names, refuse_metric, with_evaluation
from swinv2.train.scores import BEST_CLASSES
from swinv2.train.start import check_resumed_classes
from swinv2.train.video.augment import for_clips
from swinv2.train.video.choices import with_chosen_video_settings
from swinv2.train.video.examples import SegmentViews, TrainingClip, as_it_is, logits_of_views
from swinv2.train.video.settings import VideoSettings
from swinv2.train.video.start import video_model_to_train
from swinv2.video.processing import Swinv2VideoProcessor
from swinv2.video.sampling import Sampling
from swinv2.video.views import Views


class VideoTrainer(FinetuneTrainer):
    """Trains a classifier of videos; see `FinetuneTrainer`.

    Args:
        settings: Settings of `swinv2 finetune --task video`.
        rest: See `FinetuneTrainer`.
    """

    args: VideoSettings  # type: ignore[assignment]
    things = "videos"

    def __init__(self, settings: VideoSettings, *rest: Any, **options: Any) -> None:
        super().__init__(settings, *rest, **options)  # type: ignore[arg-type]
        if self.mix is not None:
            self.mix = partial(mix_clips, self.mix)

    def logits_of(self, model: nn.Module, images: Tensor) -> Tensor:
        """The logits (B, classes) of clips; of views (B, views, frames, channels, height, width), see
        `examples.logits_of_views`."""
        return logits_of_views(model, images) if images.ndim == 6 else super().logits_of(model, images)


def mix_clips(mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], clips: Tensor, labels: Tensor) -> Any:
    """Mixes clips (B, frames, channels, height, width) and their labels by timm's `Mixup`: all frames of a clip alike.

    Returns:
        Clips, and probabilities of the classes (B, classes).
    """
    mixed, labels = mix(clips.flatten(1, 2), labels)
    return mixed.unflatten(1, clips.shape[1:3]), labels


def make_video_training(
    settings: VideoSettings, build: Callable[[VideoSettings, tuple[str, ...]], Any] = video_model_to_train
) -> VideoTrainer:
    """Builds the trainer of a classifier of videos, with its model and its data.

    Args:
        settings: The settings.
        build: Builds the model for the names of the classes.

    Raises:
        UsageError: The settings, the data and the model do not fit together.
    """
    prepare_run(settings)
    open_split = partial(open_videos, names=read_names(settings.label_names_file))
    everything = open_split(settings.data, settings.train_split)
    train, evaluation = with_evaluation(settings, everything, open_split)
    train = classes_to_train(train)
    names = train.names
    if settings.resume_from_checkpoint:
        check_resumed_classes(settings.resume_from_checkpoint, names)
    if evaluation is not None:
        evaluation = match_evaluation(evaluation, names)
    if settings.choose_settings:
        settings = with_chosen_video_settings(settings, train, 0 if evaluation is None else len(evaluation))
    refuse_metric(settings, ["loss", "top1", *["top5"] * (len(names) > BEST_CLASSES)])
    weights = class_weights(
        settings.class_weights, np.bincount(train.labels(), minlength=len(names)), names, train.things
    )
    model = build(settings, names)
    config = model.config
    pixels = Pixels(as_pair("image_size", config.image_size), settings.image_mean, settings.image_std)
    sampling = Sampling.of_model(config)
    augment = for_clips(
        pixels,
        settings.crop_scale,
        settings.flip,
        settings.reverse,
        settings.color_jitter,
        settings.rand_augment,
        settings.erase_probability,
    )
    transform = SampleTransform(TrainingClip(sampling, augment), pixels.channels, seed=settings.seed, read=as_it_is)
    processor = processor_of(pixels, config.num_frames)
    views = Views(processor, sampling, settings.eval_clips, settings.eval_crops)
    plain = replace(transform, image_transform=SegmentViews(views))
    return VideoTrainer(
        settings,
        weights,
        model=model,
        train_dataset=TrainingExamples(train, transform),
        eval_dataset=evaluation and EvaluationExamples(evaluation, plain),
        processing_class=processor,
    )


def processor_of(pixels: Pixels, num_frames: int) -> Any:
    """The video processor of evaluation, which is saved with the model: it resizes the shorter side of the frames, and
    crops the centre.

    Raises:
        UsageError: The model's frames are not square.
    """
    if pixels.size[0] != pixels.size[1]:
        raise UsageError(f"a model of videos takes square frames; this one takes {in_words(pixels.size)}.")
    side = pixels.size[0]
    return Swinv2VideoProcessor(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=list(pixels.mean),
        image_std=list(pixels.std),
        num_frames=num_frames,
    )
