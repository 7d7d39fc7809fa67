"""Runs a model over images, batch by batch, and returns labels or features.

In: images, or paths. Out, for each of them, in order: predictions or features, or a `BrokenImage`. This module writes
nothing and prints nothing.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from swinv2.errors import UsageError
from swinv2.exported import ExportedNetwork
from swinv2.heads import Swinv2Backbone, Swinv2ForImageClassification
from swinv2.images import BrokenImage, read_or_skip
from swinv2.loading import (
    choose_device_of,
    has_several_labels,
    hash_weights,
    label_names,
    load_model,
    load_processor,
    read_config,
)
from swinv2.model import Swinv2Model, Swinv2PreTrainedModel
from swinv2.reading import read_batches

Answer = TypeVar("Answer")

POOLED = "pooled"

_WITHOUT_EFFECT = ("architectures", "dtype", "label2id", "transformers_version", "_name_or_path")
"""Fields of a configuration that change no answer."""


@dataclass(frozen=True)
class Prediction:
    """One label for one image.

    Attributes:
        index: Class index.
        label: Name of the class in the model's configuration.
        probability: From 0 to 1: softmax over the classes; or the sigmoid of this class, if an image may have several
            labels.
    """

    index: int
    label: str
    probability: float


class _Prepared:
    """For each file, the pixels that enter the model, or a `BrokenImage`."""

    def __init__(self, paths: Sequence[Path], predictor: "Predictor") -> None:
        self.paths, self.predictor = paths, predictor

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray | BrokenImage:
        image = read_or_skip(self.paths[index], self.predictor.channels)
        return image if isinstance(image, BrokenImage) else self.predictor.prepare(image)


class Predictor:
    """A model with its image processor.

    Args:
        model: The model, on its device.
        processor: Its image processor.
    """

    def __init__(self, model: Swinv2PreTrainedModel, processor: Any) -> None:
        self.model, self.processor = model, processor

    @property
    def channels(self) -> int:
        """Channels of the images that it takes, see `images.read_image`."""
        return self.model.config.num_channels

    def about(self) -> dict[str, Any]:
        """All that decides what is answered for an image, as JSON values: a hash of the weights, the configuration with
        its labels, the image processor."""
        config = {name: value for name, value in self.model.config.to_dict().items() if name not in _WITHOUT_EFFECT}
        model: Any = self.model
        weights = model.fingerprint() if isinstance(model, ExportedNetwork) else hash_weights(model)
        found = {"weights": weights, "config": config, "processor": self.processor.to_dict()}
        return json.loads(json.dumps(found, sort_keys=True, default=str))

    def prepare(self, image: Image.Image) -> np.ndarray:
        """The pixels (channels, height, width) that enter the model, of an image as `images.read_image` returns it."""
        return self.processor(images=image, return_tensors="pt")["pixel_values"][0].numpy()

    def _run(
        self,
        pixels: Iterable[np.ndarray],
        read: Callable[[Any], Iterable[Answer]],
        forward: Callable[[Tensor], Any] | None = None,
    ) -> list[Answer]:
        """Runs the model over prepared pixels, and returns an answer for each image.

        Args:
            pixels: See `prepare`; they are one batch. If the processor does not resize, images have different sizes; a
                batch is then divided before an image of another size.
            read: Makes an answer for each image of the model's output for a batch.
            forward: Runs the model over a batch; None to call it.
        """
        forward = forward or self.model
        answers: list[Answer] = []
        for _, same_size in groupby(pixels, lambda item: item.shape):
            # A tensor of torch begins at the same place of a cache line each time, so sums are always the same.
            pixel_values = torch.stack([torch.from_numpy(item) for item in same_size])
            pixel_values = pixel_values.to(self.model.device, self.model.dtype)
            with torch.inference_mode():
                answers += read(forward(pixel_values))
        return answers

    def _run_on_files(
        self, paths: Iterable[Path], batch_size: int, answer: Callable[[list[np.ndarray]], list[Answer]]
    ) -> Iterator[tuple[Path, Answer | BrokenImage]]:
        """Runs the model over image files, and yields an answer for each file, in order.

        Args:
            paths: The files.
            batch_size: Largest number of images in a batch.
            answer: Makes an answer for each image of a batch of prepared pixels.
        """
        paths = list(paths)
        following = iter(paths)
        for batch in read_batches(_Prepared(paths, self), batch_size):
            answers = answer([item for item in batch if not isinstance(item, BrokenImage)])
            for item in batch:
                yield next(following), item if isinstance(item, BrokenImage) else answers.pop(0)


class Classifier(Predictor):
    """Labels for images.

    Args:
        model: The model, on its device.
        processor: Its image processor.

    Raises:
        UsageError: The model is a regression.
    """

    model: Swinv2ForImageClassification

    def __init__(self, model: Swinv2ForImageClassification, processor: Any) -> None:
        if model.config.problem_type == "regression":
            raise UsageError("the model is a regression (problem_type in its config.json): it has no labels.")
        super().__init__(model, processor)
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
        chosen = choose_device_of(name, device)
        model = load_model(Swinv2ForImageClassification, name, chosen, dtype, may_be_exported=True)
        return cls(model, load_processor(name, model.config.num_channels))

    def classify(
        self, paths: Iterable[Path], top_k: int = 5, batch_size: int = 16
    ) -> Iterator[tuple[Path, list[Prediction] | BrokenImage]]:
        """Labels images.

        Args:
            paths: The files.
            top_k: Number of labels for each image, most probable first; all labels if the model has fewer.
            batch_size: Largest number of images in a batch.

        Returns:
            For each file, in order, the labels or the reason why the file was skipped.
        """
        return self._run_on_files(paths, batch_size, lambda pixels: self.label(pixels, top_k))

    def label(self, pixels: Sequence[np.ndarray], top_k: int = 5) -> list[list[Prediction]]:
        """Labels for a batch of prepared pixels, see `prepare`; `top_k` as in `classify`."""
        return self._run(pixels, lambda outputs: self._best(outputs.logits, top_k))

    def label_with_features(
        self, pixels: Sequence[np.ndarray], top_k: int = 5
    ) -> list[tuple[list[Prediction], Tensor]]:
        """Labels as `label` returns them, and the features (hidden_size,) that they are computed from, on the CPU:
        those of `FeatureExtractor`, from the same run of the model."""

        def forward(pixel_values: Tensor) -> tuple[Tensor, Tensor]:
            """The logits and the pooled features of a batch."""
            pooled = self.model.swinv2(pixel_values).pooler_output
            return self.model.classifier(pooled), pooled

        def read(outputs: tuple[Tensor, Tensor]) -> Iterator[tuple[list[Prediction], Tensor]]:
            """The labels and the features of each image of a batch."""
            logits, pooled = outputs
            return zip(self._best(logits, top_k), pooled.cpu(), strict=True)

        return self._run(pixels, read, forward)

    def _best(self, logits: Tensor, top_k: int) -> Iterator[list[Prediction]]:
        """The most probable labels of each image of a batch."""
        logits = logits.float()
        probabilities = logits.sigmoid() if has_several_labels(self.model.config) else logits.softmax(-1)
        values, indices = probabilities.cpu().topk(min(top_k, len(self.labels)))
        for row in zip(values.tolist(), indices.tolist(), strict=True):
            yield [Prediction(index, self.labels[index], value) for value, index in zip(*row, strict=True)]


class FeatureExtractor(Predictor):
    """Features of images.

    Args:
        model: `Swinv2Model` for pooled features, or `Swinv2Backbone` that returns one map; on its device.
        processor: Its image processor.
    """

    def __init__(self, model: Swinv2Model | Swinv2Backbone, processor: Any) -> None:
        super().__init__(model, processor)
        self.map_index = 0

    @classmethod
    def load(cls, name: str, stage: str = POOLED, device: str = "auto", dtype: torch.dtype = torch.float32) -> Self:
        """Loads a model and its processor.

        Args:
            name: A folder, or a name on the hub; the model may have any head.
            stage: "pooled" for the mean of the last, normalised tokens (hidden_size,); "stem", "stage1" and so on for
                that map (channels, height, width), before merging and without a norm.
            device, dtype: See `Classifier.load`.

        Raises:
            UsageError: There is no such stage, or the model, the device or the processor cannot be used.
        """
        stages = [POOLED, *read_config(name).stage_names]
        if stage not in stages:
            raise UsageError(f"--stage is {stage!r}; the model {name!r} has {', '.join(stages)}.")
        model_class, fields = (Swinv2Model, {}) if stage == POOLED else (Swinv2Backbone, {"out_features": [stage]})
        chosen = choose_device_of(name, device)
        model = load_model(model_class, name, chosen, dtype, may_be_exported=True, **fields)
        extractor = cls(model, load_processor(name, model.config.num_channels))
        if stage != POOLED:
            # An exported model has the maps that it was exported with.
            extractor.map_index = list(model.config.out_features or []).index(stage)
        return extractor

    def extract(self, paths: Iterable[Path], batch_size: int = 16) -> Iterator[tuple[Path, Tensor | BrokenImage]]:
        """For each file, in order, the features on the CPU or the reason why the file was skipped."""
        return self._run_on_files(paths, batch_size, self.features)

    def features(self, pixels: Sequence[np.ndarray]) -> list[Tensor]:
        """The features, on the CPU, of each image of a batch of prepared pixels, see `prepare`."""

        def read(outputs: Any) -> Iterator[Tensor]:
            """The features of each image of a batch."""
            yield from (
                outputs.feature_maps[self.map_index] if "feature_maps" in outputs else outputs.pooler_output
            ).cpu()

        return self._run(pixels, read)
