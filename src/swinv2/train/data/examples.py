"""Reproducible examples, and their batches.

In: a data set and a transform. Out: batches of tensors. The randomness of an example (crop, flip, mask) depends only on
the seed, the epoch and the sample's index, not on process, worker, batch or earlier random numbers. Therefore a killed
run resumes with the same examples, on any number of processes.

In training, the next image replaces an unreadable one; in evaluation, an unreadable image does not count. Its name and
the reason are part of the batch, so that the trainer can count unreadable images.
"""

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets.distributed import split_dataset_by_node
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Sampler, Subset, default_collate, get_worker_info

from swinv2.errors import UsageError
from swinv2.images import BrokenImageError
from swinv2.reading import read_batches
from swinv2.train.data.augment import Transform, decode
from swinv2.train.data.dataset import ImageDataset, Sample

IGNORED_LABEL = -100
"""Label of an example that does not count, or each of its labels; torch's cross entropy ignores it."""

MOST_BROKEN_IN_A_ROW = 100
"""Number of consecutive unreadable images after which reading stops with an error."""

Masks = Callable[[], Tensor]
"""Draws a mask of patches (H, W) from torch's global generator."""


class SampleIndex(NamedTuple):
    """The index of a sample, and the epoch."""

    epoch: int
    index: int


def make_seed(*numbers: int) -> int:
    """Mixes numbers into one seed of 63 bits; other numbers give an unrelated seed."""
    # numpy gives (1, 2) and (1, 2, 0) the same seed, also 2**32 and (0, 1).
    words = [len(numbers), *(word for number in numbers for word in divmod(number, 2**32))]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))


def seed_everything(seed: int) -> None:
    """Seeds the generators of Python, numpy and torch, on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds the generators of Python, numpy and torch's CPU, and restores their states at the end."""
    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.random.set_rng_state(states[2])


@dataclass(frozen=True)
class SampleTransform:
    """Makes an example of a sample.

    Attributes:
        image_transform: Makes pixels of what `read` returns.
        channels: Channels of the model.
        masks: Draws the mask of an example; None for no mask.
        seed: Seed of the whole run.
        classes: Number of classes, if an image may have several labels, which become 0 or 1 for each class, (classes,);
            otherwise 0.
        read: Reads the image of a sample for so many channels.
    """

    image_transform: Transform
    channels: int
    masks: Masks | None = None
    seed: int = 0
    classes: int = 0
    read: Callable[[Any, int], Any] = decode

    def __call__(self, sample: Sample, epoch: int, index: int) -> dict[str, Any]:
        """Makes the example, or raises `BrokenImageError`."""
        image = self.read(sample.image, self.channels)
        with seeded(make_seed(self.seed, epoch, index)):
            example: dict[str, Any] = {"pixel_values": self.image_transform(image)}
            if self.masks is not None:
                example["bool_masked_pos"] = self.masks().flatten()
        if sample.label is not None:
            example["labels"] = self._spread(sample.label) if self.classes else sample.label
        return example | {"broken": []}

    def _spread(self, label: int | tuple[int, ...]) -> np.ndarray:
        """Labels of one image as 0 or 1 for each class (classes,)."""
        spread = np.zeros(self.classes, np.float32)
        spread[list(label) if isinstance(label, tuple) else label] = 1.0
        return spread


@dataclass(eq=False)
class _IndexedExamples(Dataset[dict[str, Any]]):
    dataset: ImageDataset
    transform: SampleTransform

    def __len__(self) -> int:
        return len(self.dataset)


class TrainingExamples(_IndexedExamples):
    """Examples, indexed by `SampleIndex`."""

    def __getitem__(self, drawn: SampleIndex) -> dict[str, Any]:
        broken: list[str] = []
        for offset in range(min(MOST_BROKEN_IN_A_ROW, len(self))):
            index = (drawn.index + offset) % len(self)
            sample = self.dataset[index]
            try:
                return self.transform(sample, drawn.epoch, index) | {"broken": broken}
            except BrokenImageError as error:
                broken.append(f"{sample.name}: {error}")
        raise broken_images_error(broken, self.dataset.things)


class EvaluationExamples(_IndexedExamples):
    """Examples of epoch 0, indexed by integers, so that masks are the same in every evaluation.

    An unreadable image becomes a blank one with the label `IGNORED_LABEL` and an empty mask.
    """

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.dataset[index]
        try:
            return self.transform(sample, 0, index)
        except BrokenImageError as error:
            blank = np.zeros((1, 1, self.transform.channels), np.uint8)
            example = self.transform(sample._replace(image=blank), 0, index)
            if "labels" in example:
                ignored = np.full(self.transform.classes, IGNORED_LABEL, np.float32)
                example["labels"] = ignored if self.transform.classes else IGNORED_LABEL
            if "bool_masked_pos" in example:
                # Nothing is masked, so the image adds nothing to the loss.
                example["bool_masked_pos"] = torch.zeros_like(example["bool_masked_pos"])
            return example | {"broken": [f"{sample.name}: {error}"]}


class ImageBatch(NamedTuple):
    """Images to evaluate.

    Attributes:
        pixels: (B, channels, H, W).
        labels: The class of each image (B,), or 0 or 1 for each class (B, classes); of an unreadable image, see
            `EvaluationExamples`.
        broken: Names of the unreadable images, each with the reason.
    """

    pixels: Tensor
    labels: Tensor
    broken: list[str]


def read_images(
    dataset: ImageDataset,
    transform: Transform,
    channels: int,
    batch_size: int,
    workers: int | None,
    classes: int = 0,
    indices: Sequence[int] | None = None,
    read: Callable[[Any, int], Any] = decode,
) -> Iterator[ImageBatch]:
    """Reads images with labels in batches, in the order of the data set.

    Args:
        dataset: The images.
        transform: Makes pixels of a decoded image.
        channels, classes, read: See `SampleTransform`.
        batch_size, workers: See `reading.read_batches`.
        indices: The samples to read; None for all.
    """
    prepare = SampleTransform(partial(_as_array, transform), channels, classes=classes, read=read)
    examples_of = EvaluationExamples(dataset, prepare)
    for examples in read_batches(examples_of if indices is None else Subset(examples_of, indices), batch_size, workers):
        pixels, labels = (
            torch.from_numpy(np.stack([example[name] for example in examples])) for name in ("pixel_values", "labels")
        )
        yield ImageBatch(pixels, labels, [name for example in examples for name in example["broken"]])


def _as_array(transform: Transform, image: Any) -> Any:
    """The transformed image as a numpy array, for `read_batches`."""
    return np.asarray(transform(image))


@dataclass(eq=False)
class StreamedExamples(IterableDataset[dict[str, Any]]):
    """An endless stream of examples; every process and every worker reads different samples.

    Attributes:
        dataset: Samples that stream.
        transform: Makes examples of them.
        rank, world_size: Index of this process, and number of processes.
        shuffle_buffer: Number of samples from which the next one is drawn; 0 for the stored order.
    """

    dataset: ImageDataset
    transform: SampleTransform
    rank: int = 0
    world_size: int = 1
    shuffle_buffer: int = 1000

    def rows(self, epoch: int) -> Any:
        """The rows of this process in the order of an epoch, which is the same in every process and worker."""
        # Not `set_epoch`: all workers share its number, so a faster worker would change the order of the others.
        rows = self.dataset.rows
        if self.shuffle_buffer:
            rows = rows.shuffle(seed=make_seed(self.transform.seed, epoch), buffer_size=self.shuffle_buffer)
        # `datasets` itself gives each worker of a torch loader different shards.
        return split_dataset_by_node(rows, rank=self.rank, world_size=self.world_size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        mine = make_seed(self.rank, worker.id if worker else 0)
        broken: list[str] = []
        for epoch in itertools.count():
            index = -1
            for index, sample in enumerate(self.rows(epoch)):
                sample = self.dataset.sample(sample, index)
                try:
                    yield self.transform(sample, epoch, make_seed(mine, index)) | {"broken": broken}
                    broken = []
                except BrokenImageError as error:
                    broken.append(f"{sample.name}: {error}")
                    if len(broken) >= MOST_BROKEN_IN_A_ROW:
                        raise broken_images_error(broken) from error
            if index < 0:
                raise UsageError(
                    f"{self.dataset.source} has no image for worker {worker.id if worker else 0} of process "
                    f"{self.rank}; use fewer --dataloader-num-workers, or more files."
                )


def broken_images_error(broken: list[str], things: str = "images") -> UsageError:
    """The error for a data set of which too many images in a row cannot be read."""
    return UsageError(f"{len(broken)} {things} in a row cannot be read, the first one {broken[0]}.")


@dataclass(eq=False)
class ShuffledBatches(Sampler[list[SampleIndex]]):
    """The batches of one process; each `epoch` has another order.

    All processes share one order: each step takes the next `batch_size * world_size` samples. So a step has the same
    images on any number of processes, if this product is the same.

    Attributes:
        length: Number of samples.
        batch_size: Batch size of this process.
        seed: Seed of the whole run.
        rank, world_size: Index of this process, and number of processes.
        drop_last: Whether to drop the last batch of an epoch if it is not full, instead of filling it with the first
            samples of the order.
    """

    length: int
    batch_size: int
    seed: int
    rank: int = 0
    world_size: int = 1
    drop_last: bool = False
    epoch: int = 0

    def __post_init__(self) -> None:
        whole = self.batch_size * self.world_size
        if self.drop_last and self.length < whole:
            raise UsageError(
                f"there are {self.length} images, but a batch of all processes has {whole}, and the last batch is "
                "dropped if it is not full; give a smaller --per-device-train-batch-size."
            )
        self.steps = self.length // whole if self.drop_last else -(-self.length // whole)

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[SampleIndex]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length)
        order = np.resize(order, (self.steps, self.world_size, self.batch_size))
        for batch in order[:, self.rank]:
            yield [SampleIndex(self.epoch, int(index)) for index in batch]


def collate(examples: list[dict[str, Any]]) -> dict[str, Any]:
    """Stacks examples into a batch; "broken" becomes one list."""
    broken = [name for example in examples for name in example["broken"]]
    bare = [{name: value for name, value in example.items() if name != "broken"} for example in examples]
    return {"broken": broken} | default_collate(bare)
