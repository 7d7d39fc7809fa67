"""Runs a video classifier over video files.

In: paths. Out, for each of them, in order: labels, or a `BrokenImage`; or the probabilities of all labels along a
video. This module writes nothing and prints nothing.

Clips run one after the other, so memory does not grow with the length of a video.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Self

import numpy as np
import torch

from swinv2.errors import UsageError
from swinv2.images import BrokenImage
from swinv2.loading import choose_device, has_several_labels, label_names, load_model, load_video_processor
from swinv2.predict.predictor import Prediction
from swinv2.video.files import VideoError, VideoInfo
from swinv2.video.models import Swinv2ForVideoClassification
from swinv2.video.processing import Swinv2VideoProcessor
from swinv2.video.reading import probe
from swinv2.video.sampling import Sampling, view_times
from swinv2.video.views import Views

TIMELINE_STRIDE = 2.0
"""That of the clips of a timeline, if the model was trained on frames of whole videos."""

MOST_POINTS = 64
"""Clips along a timeline: more than can be told apart in a figure."""


@dataclass(frozen=True)
class Timeline:
    """The answers for clips that slide over a video.

    Attributes:
        info: The video.
        seconds: The middle of each clip.
        probabilities: The probability of each label for each clip (clips, labels).
    """

    info: VideoInfo
    seconds: list[float]
    probabilities: np.ndarray


class VideoClassifier:
    """Labels for videos.

    Args:
        model: The model, on its device.
        processor: Its video processor.

    Raises:
        UsageError: The model is a regression.
    """

    def __init__(self, model: Swinv2ForVideoClassification, processor: Swinv2VideoProcessor) -> None:
        if model.config.problem_type == "regression":
            raise UsageError("the model is a regression (problem_type in its config.json): it has no labels.")
        self.model, self.processor = model, processor
        self.labels = label_names(model.config)

    @classmethod
    def load(cls, name: str, device: str = "auto", dtype: torch.dtype = torch.float32) -> Self:
        """Loads a model and its processor.

        Args:
            name: A folder, or a name on the hub.
            device: See `choose_device`.
            dtype: Type of weights and computation.

        Raises:
            UsageError: The model, the device or the processor cannot be used; the message says why.
        """
        model = load_model(Swinv2ForVideoClassification, name, choose_device(device), dtype)
        return cls(model, load_video_processor(name, model.config.num_channels))

    def views(
        self, clips: int = 1, crops: int = 1, num_frames: int | None = None, stride: float | None = None
    ) -> Views:
        """The views of a video by which the model answers.

        Args:
            clips, crops: See `video.views.Views`.
            num_frames: Frames of a clip; None for those of the model's configuration.
            stride: Frames of the video from one frame of a clip to the next; 0 to spread the frames over the whole
                video; None for that of the model's configuration, with which it was trained.

        Raises:
            UsageError: See `video.views.Views`.
        """
        return Views(self.processor, Sampling.of_model(self.model.config, num_frames, stride), clips, crops)

    def classify(
        self, paths: Iterable[Path], top_k: int = 5, views: Views | None = None, batch_size: int = 1
    ) -> Iterator[tuple[Path, list[Prediction] | BrokenImage]]:
        """Labels videos.

        Args:
            paths: The files.
            top_k: Number of labels for each video, most probable first; all labels if the model has fewer.
            views: The parts of a video that the model sees; None for one clip.
            batch_size: Largest number of views in a batch.

        Returns:
            For each file, in order, the labels or the reason why the file was skipped.
        """
        for path in paths:
            try:
                probabilities = self.probabilities(path, views, batch_size)
            except VideoError as error:
                yield path, BrokenImage(path, error.reason)
            else:
                yield path, self.best(probabilities, top_k)

    def probabilities(self, path: str | Path, views: Views | None = None, batch_size: int = 1) -> np.ndarray:
        """The probability of each label of a video, the mean over its views; arguments as in `classify`.

        Raises:
            VideoError: The file cannot be used.
        """
        views, info = views or self.views(), probe(path)
        return np.stack(list(self._run(info, views, views.times(info), batch_size))).mean(0)

    def follow(self, path: str | Path, views: Views | None = None, batch_size: int = 1) -> Timeline:
        """The probabilities along a video: of clips that overlap by half, or of `MOST_POINTS` clips of a long video.

        Args:
            path: The file.
            views: Frames, stride and crops of a clip; the number of clips has no effect.
            batch_size: Largest number of views in a batch.

        Raises:
            VideoError: The file cannot be used.
        """
        views, info = views or self.views(), probe(path)
        sampling = views.sampling
        stride = sampling.stride or TIMELINE_STRIDE
        number = math.ceil(2 * info.frames / (sampling.num_frames * stride))
        times = view_times(info, sampling.num_frames, stride, min(max(number, 1), MOST_POINTS))
        found = np.stack(list(self._run(info, views, times, batch_size)))
        of_clips = found.reshape(len(times), views.crops, -1).mean(1)
        return Timeline(info, [sum(clip) / len(clip) for clip in times], of_clips)

    def best(self, probabilities: np.ndarray, top_k: int) -> list[Prediction]:
        """The most probable labels."""
        order = np.argsort(-probabilities, kind="stable")[:top_k]
        return [Prediction(int(index), self.labels[index], float(probabilities[index])) for index in order]

    def _run(
        self, info: VideoInfo, views: Views, times: Sequence[Sequence[float]], batch_size: int
    ) -> Iterator[np.ndarray]:
        """The probabilities (labels,) of each view: of the clips at these times, one crop after the other."""
        prepared = (view for clip in times for view in views.read(info, clip))
        while batch := list(islice(prepared, batch_size)):
            pixel_values = torch.stack(batch).to(self.model.device, self.model.dtype)
            with torch.inference_mode():
                logits = self.model(pixel_values).logits.float()
            yield from (logits.sigmoid() if has_several_labels(self.model.config) else logits.softmax(-1)).cpu().numpy()
