"""What the page shows of an image, computed by one model.

In: a model's name, and image files. Out: labels, classes of pixels or objects; attention weights and feature maps. This
module draws nothing and knows no web page.

An image that is larger than `LONGEST_SIDE` is shown, segmented and searched for objects at that size, and its attention
and feature maps are computed from that size; its labels are those of the whole image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from transformers import ViTImageProcessor

from swinv2.dense.answers import Detector, Segmenter
from swinv2.dense.average_precision import Detections
from swinv2.dense.detectors import SwinRCNN
from swinv2.dense.saved import SEGMENTATION, read_dense_config, task_of
from swinv2.errors import UsageError
from swinv2.exported import read_manifest
from swinv2.heads import Swinv2Backbone
from swinv2.images import ImageLimits, read_image
from swinv2.inspect.attention_map import TokenAttention, token_attention
from swinv2.inspect.components import Components, principal_components
from swinv2.inspect.observation import BlockTrace, observe, token_size_of
from swinv2.inspect.view import View, look
from swinv2.lengths import Pair, as_pair
from swinv2.loading import choose_device, has_several_labels, load_model, load_processor, read_config
from swinv2.model import Swinv2Model
from swinv2.ops.windows import WindowPlan
from swinv2.predict.predictor import Classifier
from swinv2.predict.segmenting import ClassShare, count_classes

MOST_PIXELS = 50_000_000
"""Larger images are refused by their header."""

LONGEST_SIDE = 1600

LONGEST_OBSERVED = 1024
"""Segmenters and detectors take images of any size; attention and feature maps are computed from at most this side."""

TOP_K = 5

_CACHED = 3
"""Images whose answers are kept: attention weights of large windows take 100 MB and more."""

STEM = "stem"


@dataclass(frozen=True)
class Attentions:
    """The attention weights of the last block of a stage, for one image.

    Attributes:
        weights: Attention weights of all windows (windows, heads, tokens, tokens).
        plan: Windows and shift of the block.
        token_size: Size (height, width) of a token, in pixels that the model saw.
    """

    weights: torch.Tensor
    plan: WindowPlan
    token_size: Pair

    @property
    def heads(self) -> int:
        """Number of heads."""
        return self.weights.shape[1]


@dataclass(frozen=True)
class Seen:
    """What a model sees in an image.

    Attributes:
        view: The pixels that it sees, and their positions in the image that is shown.
        attentions: By the name of their stage, "stage1" and so on.
        maps: Principal components of the feature maps, by name: "stem", "stage1" and so on.
    """

    view: View
    attentions: Mapping[str, Attentions]
    maps: Mapping[str, Components]


@dataclass(frozen=True)
class Shown:
    """Everything that the page shows of an image; what the model does not do is None.

    Attributes:
        image: The image, RGB, at most `LONGEST_SIDE` pixels along each side.
        labels: The most probable labels, with probabilities from 0 to 1.
        classes: The class of each pixel of `image` (height, width).
        shares: The classes that occur, the largest first.
        objects: The objects in `image`, the surest first.
        seen: What the model sees.
    """

    image: Image.Image
    labels: dict[str, float] | None = None
    classes: np.ndarray | None = None
    shares: Sequence[ClassShare] = ()
    objects: Detections | None = None
    seen: Seen | None = None


class PageModel:
    """A model of any kind, loaded once.

    Attributes:
        name: Its name for people.
        answers: What answers for images; None for a model without a head.
        network: The network whose attention is shown; None for an exported model.
        names: Names of its labels or classes.

    Args:
        name, answers, network: See above.
        processor: The image processor of a classifier, or of a model without a head.
    """

    def __init__(
        self,
        name: str,
        answers: Classifier | Segmenter | Detector | None,
        network: Swinv2Model | Swinv2Backbone | None,
        processor: Any = None,
    ) -> None:
        self.name, self.answers, self.network, self._processor = name, answers, network, processor
        labels = answers.labels if isinstance(answers, Classifier) else getattr(answers, "names", ())
        self.names = unique_names(labels)
        self.show = lru_cache(_CACHED)(self._show)

    @classmethod
    def load(cls, name: str, device: str = "auto") -> Self:
        """Loads a classifier, segmenter, detector, exported classifier, or a model without a head.

        Args:
            name: A folder, or a name on the hub.
            device: See `loading.choose_device`.

        Raises:
            UsageError: The model cannot be used; the message says why.
        """
        title = Path(name).expanduser().resolve().name if Path(name).expanduser().is_dir() else name
        fields = read_dense_config(name)
        if fields is not None:
            kind = Segmenter if task_of(fields) == SEGMENTATION else Detector
            answers = kind.load(name, choose_device(device))
            (backbone,) = (each for each in answers.model.modules() if isinstance(each, Swinv2Backbone))
            return cls(title, answers, backbone)
        if read_manifest(name) is not None:
            return cls(title, Classifier.load(name, device), None)
        architectures: list[str] = read_config(name).architectures or []
        if any(each.endswith(("Swinv2Model", "ForMaskedImageModeling", "Backbone")) for each in architectures):
            model = load_model(Swinv2Model, name, choose_device(device), torch.float32)
            return cls(title, None, model, load_processor(name, model.config.num_channels))
        classifier = Classifier.load(name, device)
        model: Any = classifier.model
        return cls(title, classifier, model.swinv2, classifier.processor)

    @property
    def stages(self) -> list[str]:
        """Names of the stages whose attention can be shown: "stage1" and so on."""
        return [] if self.network is None else self.network.config.stage_names[1:]

    def heads(self, stage: str) -> int:
        """Number of heads of a stage."""
        assert self.network is not None
        return self.network.config.num_heads[self.stages.index(stage)]

    @property
    def several_labels(self) -> bool:
        """Whether an image may have several labels, each with a probability of its own."""
        return isinstance(self.answers, Classifier) and has_several_labels(self.answers.model.config)

    def _show(self, path: Path) -> Shown:
        """Everything that the page shows of an image file. `show` is the same, and keeps the last few answers.

        Raises:
            BrokenImageError: The file cannot be read, or the image is too large.
        """
        image = read_image(path, self.channels, ImageLimits(MOST_PIXELS))
        small = reduced(image)
        labels = classes = objects = None
        shares: Sequence[ClassShare] = ()
        if isinstance(self.answers, Classifier):
            (found,) = self.answers.label([self.answers.prepare(image)], TOP_K)
            labels = {self.names[each.index]: each.probability for each in found}
        elif isinstance(self.answers, Segmenter):
            with torch.inference_mode():
                classes = self.answers(small)
            shares = count_classes(classes, self.names)
        elif isinstance(self.answers, Detector):
            (objects,) = self.answers([small])
        return Shown(small.convert("RGB"), labels, classes, shares, objects, self._look(small))

    @property
    def channels(self) -> int:
        """Channels of the images that the model takes."""
        return self.answers.channels if isinstance(self.answers, Classifier) else self._config.num_channels

    @property
    def _config(self) -> Any:
        """The configuration of the network."""
        assert self.network is not None
        return self.network.config

    def _look(self, image: Image.Image) -> Seen | None:
        """Attention weights and feature maps of an image; None for an exported model."""
        if self.network is None:
            return None
        view = look(image, self._processor or self._processor_for(image))
        weight = next(self.network.parameters())
        seen = observe(self.network, view.pixel_values.to(weight.device, weight.dtype))
        attentions = {f"stage{trace.stage}": self._attentions(trace) for trace in seen.attentions}
        maps = {name: principal_components(tokens[0]) for name, tokens in seen.stage_maps().items()}
        return Seen(view, attentions, maps)

    def _attentions(self, trace: BlockTrace) -> Attentions:
        """The attention weights of a recorded block."""
        assert trace.weights is not None
        return Attentions(trace.weights, trace.plan, token_size_of(self._config, trace.stage))

    def _processor_for(self, image: Image.Image) -> Any:
        """An image processor that resizes an image as a segmenter or detector takes it, but to the side of its training
        images at most."""
        most = min(max(as_pair("image_size", self._config.image_size)), LONGEST_OBSERVED)
        scale = self.answers.image_scale if isinstance(self.answers, Segmenter) else most / max(image.size)
        scale = min(scale, most / max(image.size))
        size = {"height": max(round(image.height * scale), 1), "width": max(round(image.width * scale), 1)}
        mean, std = self._normalisation()
        return ViTImageProcessor(size=size, image_mean=list(mean), image_std=list(std))

    def _normalisation(self) -> tuple[Sequence[float], Sequence[float]]:
        """Mean and standard deviation of each channel of a segmenter's or detector's images."""
        if isinstance(self.answers, Segmenter):
            return self.answers.mean, self.answers.std
        assert isinstance(self.answers, Detector)
        if isinstance(self.answers.model, SwinRCNN):
            transform: Any = self.answers.model.detector.transform
            return transform.image_mean, transform.image_std
        processor = self.answers.processor
        if not processor.do_normalize:
            return [0.0] * 3, [1.0] * 3
        return processor.image_mean, processor.image_std


def unique_names(names: Sequence[str]) -> list[str]:
    """The names of classes, with the class's number behind those that are not unique.

    Example:

        >>> unique_names(["crane", "dog", "crane"])
        ['crane (0)', 'dog', 'crane (2)']
    """
    names = list(names)
    return [f"{name} ({index})" if names.count(name) > 1 else name for index, name in enumerate(names)]


def reduced(image: Image.Image) -> Image.Image:
    """The image with at most `LONGEST_SIDE` pixels along each side."""
    scale = LONGEST_SIDE / max(image.size)
    if scale >= 1:
        return image
    size = tuple(max(round(side * scale), 1) for side in image.size)
    return image.resize((size[0], size[1]), Image.Resampling.LANCZOS)


def pixel_at(seen: Seen, point: tuple[int, int]) -> Pair:
    """Row and column of the pixel in the model's input that shows a point of the image.

    Args:
        seen: What the model sees.
        point: Pixels from the left and from the top of the image that is shown.

    Raises:
        UsageError: The image processor cuts the point off.
    """
    left, top, right, bottom = (round(edge) for edge in seen.view.box)
    height, width = seen.view.size
    x, y = min(max(point[0], 0), width - 1), min(max(point[1], 0), height - 1)
    if not (left <= x < right and top <= y < bottom):
        raise UsageError(
            f"The model does not see this point: of {width} x {height} pixels its image processor keeps those from "
            f"{left} to {right - 1} from the left and from {top} to {bottom - 1} from the top. Click there."
        )
    return seen.view.find((x, y))


def attention_at(seen: Seen, stage: str, pixel: Pair | None = None) -> TokenAttention:
    """The attention of a token in the last block of a stage.

    Args:
        seen: What the model sees.
        stage: "stage1" and so on.
        pixel: Row and column in the model's input; None for the centre.
    """
    here = seen.attentions[stage]
    row, column = pixel if pixel is not None else seen.view.find(None)
    return token_attention(here.weights, here.plan, (row // here.token_size[0], column // here.token_size[1]))
