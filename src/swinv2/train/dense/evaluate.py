"""Evaluation of segmenters and detectors on images with truths, at the size of the images.

In: a model's answers and a data set. Out: mean IoU, or COCO's average precision. Images are read and forgotten one
after another, so the memory does not depend on their number.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from swinv2.dense.answers import Detector, Segmenter
from swinv2.dense.average_precision import DetectionScores
from swinv2.dense.backbone import backbone_of, set_image_size
from swinv2.dense.saved import INSTANCES, SEGMENTATION, read_dense_config, task_of
from swinv2.dense.scores import SegmentationScores
from swinv2.errors import UsageError
from swinv2.loading import choose_device
from swinv2.reading import read_batches
from swinv2.train.data.masks.dataset import IGNORED_PIXEL, MaskDataset
from swinv2.train.data.masks.opening import open_masks
from swinv2.train.data.objects.dataset import ObjectDataset
from swinv2.train.data.objects.opening import open_objects
from swinv2.train.dense.drawing import Watched
from swinv2.train.dense.examples import EvaluatedImages

Scores = SegmentationScores | DetectionScores


def evaluate_images(
    answer: Segmenter | Detector,
    dataset: MaskDataset | ObjectDataset,
    *,
    chosen: Sequence[int] | None = None,
    batch_size: int = 1,
    workers: int | None = None,
    advance: Callable[[int], None] = lambda images: None,
    watched: Watched | None = None,
) -> tuple[Scores, list[str]]:
    """Compares the answers of a model with the truths.

    Args:
        answer: The model.
        dataset: The images; its classes are the model's, in the same order.
        chosen: Indices of the images; None for all.
        batch_size: Images that are read, and by a detector computed, at once.
        workers: See `reading.read_batches`.
        advance: Called after each batch with its number of images.
        watched: Stores some of the images for figures.

    Returns:
        The scores, and the unreadable images, each with the reason.
    """
    scores = _empty_scores(answer, dataset)
    unreadable: list[str] = []
    images = EvaluatedImages(dataset, range(len(dataset)) if chosen is None else chosen)
    for batch in read_batches(images, batch_size, workers):
        read = [item for item in batch if not isinstance(item, str)]
        unreadable += [item for item in batch if isinstance(item, str)]
        for (index, pixels, truth), found in zip(read, _answers(answer, [item[1] for item in read]), strict=True):
            if isinstance(scores, SegmentationScores):
                scores.add(truth, found, dataset[index].name)
            else:
                scores.add(truth, found, (pixels.shape[0], pixels.shape[1]), index, dataset[index].name)
            if watched is not None:
                watched.note(dataset[index].name, pixels, truth, found)
        advance(len(batch))
    return scores, unreadable


def _answers(answer: Segmenter | Detector, images: list[np.ndarray]) -> Iterator[Any]:
    """The answers for images: one at a time for pixels, together for objects."""
    if isinstance(answer, Segmenter):
        return map(answer, images)
    return iter(answer(images) if images else [])


def _empty_scores(answer: Segmenter | Detector, dataset: MaskDataset | ObjectDataset) -> Scores:
    """Scores of no image yet."""
    if isinstance(answer, Segmenter):
        return SegmentationScores(answer.names, IGNORED_PIXEL)
    assert isinstance(dataset, ObjectDataset)
    return DetectionScores(answer.names, masks=answer.has_masks)


def open_to_evaluate(
    task: str, data: str, split: str, of_model: Sequence[str], **options: Any
) -> MaskDataset | ObjectDataset:
    """Opens the data of a task, with the classes of a model in its order.

    Args:
        task: One of `dense.saved.TASKS`.
        data, split, options: See `open_masks` and `open_objects`.
        of_model: Names of the model's classes.
    """
    if task == SEGMENTATION:
        return open_masks(data, split, **options).with_names(of_model, "the model")
    needs_masks, names = task == INSTANCES, options.get("names", ())
    dataset = open_objects(data, split, names=names, needs_masks=needs_masks)
    if not names and len(dataset.names) == len(of_model) and all(name.isdigit() for name in dataset.names):
        # The data has numbers only; the model has the names that its training was given for them.
        dataset = open_objects(data, split, names=of_model, needs_masks=needs_masks)
    return dataset.with_names(of_model, "the model")


def evaluate_dense(
    model: str,
    data: str,
    split: str = "evaluation",
    *,
    batch_size: int = 1,
    workers: int | None = None,
    device: str = "auto",
    dtype: torch.dtype = torch.float32,
    output: Path | None = None,
    advance: Callable[[int, int], None] = lambda done, total: None,
    **options: Any,
) -> tuple[Scores, MaskDataset | ObjectDataset, list[str], list[Path]]:
    """Evaluates a saved segmenter or detector.

    Args:
        model: A folder, or a name on the hub.
        data, split: See `open_masks` and `open_objects`.
        batch_size: See `evaluate_images`.
        workers: See `reading.read_batches`.
        device: See `loading.choose_device`.
        dtype: Type of the weights.
        output: Folder for the figures; None for none.
        advance: Called with the number of images done and the number of all images.
        options: Of segmenters: `ignore_index`, `reduce_labels`, `names`, `mask_column`, `image_column` of `open_masks`;
            `window`, `stride`, `scales` and `flip` of `Segmenter`; `image_size`, `window_size` and `stretch_bias` of
            `set_image_size`.

    Returns:
        Scores, data set, unreadable images with reasons, and the files of the figures.

    Raises:
        UsageError: The model or the data cannot be opened, or their classes do not match.
    """
    config = read_dense_config(model)
    if config is None:
        raise UsageError(f"{model!r} is no segmenter or detector with a Swin V2 backbone.")
    task = task_of(config)
    views = {name: options.pop(name) for name in ("window", "stride", "scales", "flip") if name in options}
    sizes = {name: options.pop(name) for name in ("image_size", "window_size", "stretch_bias") if name in options}
    others = options.keys() - {"names"}
    if task != SEGMENTATION and (views or sizes or others):
        raise UsageError(f"{model!r} is a detector; {', '.join([*views, *sizes, *others])} are for segmenters.")
    answer: Any = (Segmenter if task == SEGMENTATION else Detector).load(model, choose_device(device), dtype)
    for name, value in views.items():
        setattr(answer, name, value)
    if sizes:
        image_size: Any = sizes.get("image_size") or backbone_of(answer.model).config.image_size
        stretch = sizes.get("stretch_bias", False)
        set_image_size(answer.model, image_size, sizes.get("window_size"), stretch=stretch)
    dataset = open_to_evaluate(task, data, split, answer.names, **options)
    done = 0

    def count(images: int) -> None:
        nonlocal done
        done += images
        advance(done, len(dataset))

    watched = Watched(answer.names) if output is not None else None
    scores, unreadable = evaluate_images(
        answer, dataset, batch_size=batch_size, workers=workers, advance=count, watched=watched
    )
    if not scores.images:
        raise UsageError(f"{data} has no readable image.")
    files = watched.draw(scores, output) if watched is not None and output is not None else []
    return scores, dataset, unreadable, files
