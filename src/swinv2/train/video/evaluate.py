"""Evaluation of a classifier of videos on labelled videos.

In: a model's folder or name, and a source of labelled videos. Out: scores, as of a classifier of images. Of each video,
the mean of the probabilities over its views counts: clips at different times, and crops of each.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from swinv2.errors import UsageError
from swinv2.loading import choose_device, has_several_labels, load_model, load_video_processor
from swinv2.train.data.examples import read_images
from swinv2.train.data.videos.dataset import VideoDataset
from swinv2.train.data.videos.opening import open_videos
from swinv2.train.evaluate import evaluate_batches, match_dataset
from swinv2.train.multilabel import MultilabelEvaluation
from swinv2.train.scores import Evaluation
from swinv2.train.video.examples import SegmentViews, as_it_is, logits_of_views
from swinv2.video.models import Swinv2ForVideoClassification
from swinv2.video.sampling import Sampling
from swinv2.video.views import Views, frame_size


def evaluate_videos(
    model: str,
    data: str,
    split: str = "evaluation",
    *,
    clips: int = 1,
    crops: int = 1,
    names: tuple[str, ...] = (),
    batch_size: int = 8,
    workers: int | None = None,
    device: str = "auto",
    dtype: torch.dtype = torch.float32,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Evaluation | MultilabelEvaluation, VideoDataset]:
    """Evaluates a classifier of videos.

    Args:
        model: A folder, or a name on the hub.
        data, split, names: See `videos.opening.open_videos`.
        clips, crops: Views of each video; see `video.views.Views`.
        batch_size: Videos of a batch; each has `clips * crops` clips.
        workers: Processes that read videos; None: see `reading.read_batches`.
        device: See `loading.choose_device`.
        dtype: Type of the weights.
        advance: Called with the number of videos done and the number of all videos.

    Returns:
        The results, and the data set.

    Raises:
        UsageError: The model or the data cannot be opened, their classes do not match, or a video has several labels.
    """
    classifier = load_model(Swinv2ForVideoClassification, model, choose_device(device), dtype)
    config: Any = classifier.config
    dataset = match_dataset(open_videos(data, split, names=names), config)
    if has_several_labels(config):
        raise UsageError(
            f"the model {model!r} gives a video any number of labels; only models with one label for each video can be "
            "evaluated."
        )
    processor = load_video_processor(model, config.num_channels)
    if frame_size(processor) is None:
        raise UsageError(
            f"the video processor of {model!r} makes frames of another size for each video, which do not fit into a "
            "batch; give it a crop_size, and do_center_crop."
        )
    views = Views(processor, Sampling.of_model(config), clips, crops)
    batches = read_images(dataset, SegmentViews(views), config.num_channels, batch_size, workers, read=as_it_is)

    def answer(pixels: Tensor) -> Tensor:
        return logits_of_views(classifier, pixels)

    return evaluate_batches(answer, classifier, batches, dataset, advance), dataset
