"""Examples of segmenters and detectors, and their batches.

In: images with masks or objects, and augmentation. Out: batches as the heads take them. As in `data/examples.py`, the
randomness of an example depends only on the seed, the epoch and the index of the image; an unreadable image is replaced
by the next one, and its name is part of the batch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.ops import box_convert
from torchvision.transforms.v2 import functional as F

from swinv2.dense.answers import RGB
from swinv2.dense.masks import decode_mask
from swinv2.errors import UsageError
from swinv2.images import BrokenImageError
from swinv2.lengths import Pair
from swinv2.train.data.augment import decode
from swinv2.train.data.examples import MOST_BROKEN_IN_A_ROW, SampleIndex, broken_images_error, make_seed, seeded
from swinv2.train.data.masks.dataset import IGNORED_PIXEL, MaskDataset, MaskedImage, check_size
from swinv2.train.data.objects.dataset import AnnotatedImage, ObjectDataset
from swinv2.train.dense.augment import without_empty_boxes


def read_pixels(stored: str | bytes | np.ndarray) -> np.ndarray:
    """The pixels (height, width, 3) of an image, eight bits.

    Raises:
        BrokenImageError: It cannot be read.
    """
    return np.array(decode(stored, RGB))


def read_mask(dataset: MaskDataset, sample: MaskedImage) -> np.ndarray:
    """The class of each pixel of an image's mask.

    Raises:
        BrokenImageError: The mask cannot be read; the message names it.
    """
    try:
        return dataset.read_mask(sample)
    except BrokenImageError as error:
        raise BrokenImageError(f"its mask {sample.mask_name} is {error}") from error


def _check_annotated_size(sample: AnnotatedImage, size: Pair) -> None:
    """Raises an error if the objects of an image belong to an image of another size."""
    if sample.annotated_size is not None and tuple(sample.annotated_size) != size:
        height, width = sample.annotated_size
        raise UsageError(
            f"{sample.name} has {size[1]} x {size[0]} pixels (width x height), its annotations are for {width} x "
            f"{height}; annotate the image again, or restore it."
        )


@dataclass(frozen=True)
class Normalise:
    """Makes the pixels that a head takes.

    Attributes:
        mean, std: Mean and standard deviation of each channel; None: values from 0 to 1, for detectors that normalise
            images themselves.
    """

    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    def __call__(self, image: Tensor) -> Tensor:
        """Pixels in fp32 of pixels (channels, height, width) of eight bits."""
        pixels = F.to_dtype(image.as_subclass(Tensor), torch.float32, scale=True)
        return pixels if self.mean is None else F.normalize(pixels, list(self.mean), list(self.std or ()))


@dataclass(frozen=True)
class MaskExample:
    """Makes an example of an image with a mask.

    Attributes:
        dataset: The images.
        augment: See `augment.for_masks`.
        normalise: Makes the pixels.
        as_queries: Whether the head takes a mask for each class that occurs, as Mask2Former does; otherwise the class
            of each pixel.
    """

    dataset: MaskDataset
    augment: Callable[[Any], Any]
    normalise: Normalise
    as_queries: bool = False

    def __call__(self, index: int) -> dict[str, Any]:
        sample = self.dataset[index]
        pixels, classes = read_pixels(sample.image), read_mask(self.dataset, sample)
        check_size((pixels.shape[0], pixels.shape[1]), (classes.shape[0], classes.shape[1]), sample)
        image = tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1))
        changed = self.augment({"image": image, "mask": tv_tensors.Mask(torch.from_numpy(classes))})
        labels = changed["mask"].as_subclass(Tensor).long()
        example: dict[str, Any] = {"pixel_values": self.normalise(changed["image"])}
        if not self.as_queries:
            return example | {"labels": labels}
        present = labels.unique()
        present = present[present != IGNORED_PIXEL]
        return example | {"class_labels": present, "mask_labels": (labels == present[:, None, None]).float()}


@dataclass(frozen=True)
class ObjectExample:
    """Makes an example of an image with objects. Crowds are left out: they are for evaluation.

    Attributes:
        dataset: The images.
        augment: See `augment.for_objects`.
        normalise: Makes the pixels.
        head: The head, which decides the form of the labels; see `dense.HEADS`.
    """

    dataset: ObjectDataset
    augment: Callable[[Any], Any]
    normalise: Normalise
    head: str

    def __call__(self, index: int) -> dict[str, Any]:
        sample = self.dataset[index]
        pixels = read_pixels(sample.image)
        size = pixels.shape[0], pixels.shape[1]
        _check_annotated_size(sample, size)
        image = tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1))
        changed = without_empty_boxes(self.augment({"image": image, **self._objects(sample, size)}))
        boxes, labels = changed["boxes"].as_subclass(Tensor).float(), changed["labels"]
        example = {"pixel_values": self.normalise(changed["image"])}
        if self.head == "mask2former":
            masks = changed["masks"].as_subclass(Tensor).float()
            return example | {"class_labels": labels, "mask_labels": masks}
        if self.head == "rt_detr":
            height, width = changed["image"].shape[-2:]
            shares = box_convert(boxes, "xyxy", "cxcywh") / torch.tensor([width, height, width, height])
            return example | {"labels": {"class_labels": labels, "boxes": shares}}
        # To torchvision, 0 is the background.
        target = {"boxes": boxes, "labels": labels + 1}
        if "masks" in changed:
            target["masks"] = changed["masks"].as_subclass(Tensor)
        return example | {"labels": target}

    def _objects(self, sample: AnnotatedImage, size: tuple[int, int]) -> dict[str, Any]:
        """The objects of an image as tv_tensors, without crowds."""
        objects = sample.objects
        kept = np.flatnonzero(~objects.crowd)
        boxes = torch.from_numpy(objects.boxes[kept].reshape(-1, 4))
        found: dict[str, Any] = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),  # type: ignore[call-overload]
            "labels": torch.from_numpy(objects.labels[kept]),
        }
        if self.head in ("mask_rcnn", "mask2former"):
            masks = np.zeros((len(kept), *size), np.uint8)
            for place, index in enumerate(kept):
                segment = objects.segments[index]
                assert segment is not None, "objects without masks are left out by open_objects"
                masks[place] = decode_mask(segment, size)
            found["masks"] = tv_tensors.Mask(torch.from_numpy(masks))
        return found


@dataclass(eq=False)
class DenseExamples(Dataset[dict[str, Any]]):
    """Training examples, indexed by `SampleIndex`.

    Attributes:
        dataset: The images.
        make: Makes an example of the image with an index.
        seed: Seed of the whole run.
    """

    dataset: MaskDataset | ObjectDataset
    make: Callable[[int], dict[str, Any]]
    seed: int = 0

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, drawn: SampleIndex) -> dict[str, Any]:
        broken: list[str] = []
        for offset in range(min(MOST_BROKEN_IN_A_ROW, len(self))):
            index = (drawn.index + offset) % len(self)
            try:
                with seeded(make_seed(self.seed, drawn.epoch, index)):
                    return self.make(index) | {"broken": broken}
            except BrokenImageError as error:
                broken.append(f"{self.dataset[index].name}: {error}")
        raise broken_images_error(broken)


@dataclass(eq=False)
class EvaluatedImages:
    """Images to evaluate with their truths, as `reading.read_batches` takes them.

    Attributes:
        dataset: The images.
        chosen: The indices of those that are read.
    """

    dataset: MaskDataset | ObjectDataset
    chosen: Sequence[int]

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, place: int) -> tuple[int, Any, Any] | str:
        """Index, pixels and truth: classes of pixels, or objects; the name and the reason if it cannot be read."""
        index = self.chosen[place]
        sample: Any = self.dataset[index]
        try:
            pixels = read_pixels(sample.image)
            size = pixels.shape[0], pixels.shape[1]
            if isinstance(self.dataset, ObjectDataset):
                _check_annotated_size(sample, size)
                return index, pixels, sample.objects
            classes = read_mask(self.dataset, sample)
            check_size(size, (classes.shape[0], classes.shape[1]), sample)
        except BrokenImageError as error:
            return f"{sample.name}: {error}"
        return index, pixels, classes


def collate_dense(examples: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch: tensors of one shape are stacked, others are lists; "broken" becomes one list."""
    batch: dict[str, Any] = {"broken": [name for example in examples for name in example["broken"]]}
    for name in examples[0].keys() - {"broken"}:
        values = [example[name] for example in examples]
        may_stack = name in ("pixel_values", "labels") and not isinstance(values[0], Mapping)
        is_one_shape = may_stack and len({value.shape for value in values}) == 1
        batch[name] = torch.stack(values) if is_one_shape else values
    return batch
