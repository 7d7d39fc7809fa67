"""Features of a data set: the mean of each image's last, normalised tokens, which is what a classifier gets.

In: a model, a data set and the transform of its images. Out: a row of features for each readable image, possibly stored
in a file and read from it by the next run. This module knows no classifier.

A file of features is for one model with one image size, one transform and one split of the data. Its name is made of
all these, so that features of anything else are never read. It has the numbers of the rows that were computed: another
share of the same images uses them too, and a run that was killed has lost a minute.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from swinv2.disk import whole_file
from swinv2.errors import UsageError
from swinv2.loading import hash_weights
from swinv2.model import Swinv2Model
from swinv2.train.data.augment import Transform
from swinv2.train.data.dataset import ImageDataset
from swinv2.train.data.examples import IGNORED_LABEL, read_images

logger = logging.getLogger(__name__)

BATCH_SIZE = 64
SECONDS_BETWEEN_SAVES = 60.0

_WITHOUT_EFFECT = ("id2label", "label2id", "architectures", "dtype", "transformers_version", "_name_or_path")
"""Fields of a configuration that change no feature."""


class Features(NamedTuple):
    """Features of images of a data set, in its order.

    Attributes:
        values: (images, channels), fp32, on the CPU.
        labels: (images,); `IGNORED_LABEL` for an unreadable image, whose features mean nothing.
        broken: Names of the unreadable images, each with the reason.
    """

    values: Tensor
    labels: Tensor
    broken: list[str]

    def readable(self) -> "Features":
        """The features without those of unreadable images."""
        is_readable = self.labels != IGNORED_LABEL
        return Features(self.values[is_readable], self.labels[is_readable], self.broken)


def read_features(
    model: Swinv2Model, dataset: ImageDataset, transform: Transform, batch_size: int, workers: int | None
) -> Iterator[Features]:
    """Computes features, batch by batch, in the order of the data set.

    Args:
        model: The model in evaluation mode, on its device.
        dataset: The images, with labels.
        transform: Makes the model's input of a decoded image.
        batch_size: Images of a batch.
        workers: See `reading.read_batches`.

    Raises:
        UsageError: A feature is NaN or infinite.
    """
    for batch in read_images(dataset, transform, model.config.num_channels, batch_size, workers):
        with torch.inference_mode():
            features = model(batch.pixels.to(model.device, model.dtype)).pooler_output.float().cpu()
        if not features.isfinite().all():
            raise UsageError(
                f"the model's features of images of {dataset.source} are NaN or infinite; its weights are damaged, or "
                f"{str(model.dtype).removeprefix('torch.')} is too small for them: compute in float32 or bfloat16."
            )
        yield Features(features, batch.labels, batch.broken)


def collect_features(batches: Iterable[Features], advance: Callable[[int], None]) -> Features:
    """All features in memory; `advance` is called with the number of images done after each batch."""
    collected: list[Features] = []
    done = 0
    for batch in batches:
        collected.append(batch)
        done += len(batch.labels)
        advance(done)
    values, labels, broken = zip(*collected, strict=True)
    return Features(torch.cat(values), torch.cat(labels), [name for names in broken for name in names])


class FeatureStore:
    """Features of data sets, stored in a folder.

    Args:
        folder: The folder; it is made when something is stored.
        model: The model in evaluation mode, on its device.
        transform: Makes the model's input of a decoded image.
        about: Description of the transform, as JSON values: equal transforms have equal descriptions.
    """

    def __init__(self, folder: Path, model: Swinv2Model, transform: Transform, about: Mapping[str, Any]) -> None:
        self.folder, self.model, self.transform = folder, model, transform
        config = {name: value for name, value in model.config.to_dict().items() if name not in _WITHOUT_EFFECT}
        self._about = {"weights": hash_weights(model), "config": config, "transform": dict(about)}

    def file_of(self, dataset: ImageDataset) -> Path:
        """The file for the features of a data set; it need not exist."""
        key = hashlib.sha256(json.dumps(self._about, sort_keys=True, default=str).encode())
        # `datasets` makes the fingerprint of the rows; the content of the image files that they name is not part of it.
        key.update(f"{dataset.rows._fingerprint} {dataset.image_column}".encode())
        for path in _paths_of(dataset):
            about = os.stat(path) if os.path.exists(path) else None
            key.update(f"{path} {about and (about.st_size, about.st_mtime_ns)};".encode(errors="surrogatepass"))
        return self.folder / f"{key.hexdigest()[:32]}.safetensors"

    def missing(self, dataset: ImageDataset) -> ImageDataset:
        """The part of a data set whose features are not stored. Those of unreadable images never are."""
        return _without(dataset, self._load(self.file_of(dataset), "rows"))

    def features_of(
        self,
        dataset: ImageDataset,
        *,
        batch_size: int = BATCH_SIZE,
        workers: int | None = None,
        advance: Callable[[int, int], None] = lambda done, total: None,
        note_broken: Callable[[list[str]], None] = lambda names: None,
    ) -> Features:
        """Reads the stored features of a data set, computes the missing ones and stores them, once a minute.

        Args:
            dataset: The images, with labels; not a stream.
            batch_size, workers: See `read_features`.
            advance: Called with the number of images done and the number of images to compute.
            note_broken: Called with the names of unreadable images of each batch; it may raise an error.

        Raises:
            UsageError: The file of features cannot be read, or a feature is NaN or infinite.
        """
        # Once: the name depends on the files of the images, and they may change meanwhile.
        file = self.file_of(dataset)
        rows, values, broken = [self._load(file, "rows")], [self._load(file, "features")], list[str]()
        pending = _without(dataset, rows[0])
        if len(pending) < len(dataset):
            logger.warning(
                f"features of {len(dataset) - len(pending):,} of {len(dataset):,} images of {dataset.source} were "
                f"computed before; they are read from {file}"
            )
        done, saved = 0, time.monotonic()
        for batch in read_features(self.model, pending, self.transform, batch_size, workers) if len(pending) else ():
            note_broken(batch.broken)
            broken += batch.broken
            is_readable = batch.labels != IGNORED_LABEL
            rows.append(torch.from_numpy(_rows_of(pending)[done : done + len(is_readable)])[is_readable])
            values.append(batch.values[is_readable])
            done += len(is_readable)
            advance(done, len(pending))
            if done == len(pending) or time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
                rows, values = [torch.cat(rows)], [torch.cat(values)]
                _save(file, rows[0], values[0])
                saved = time.monotonic()
        known, order = rows[0].sort()
        wanted = torch.from_numpy(_rows_of(dataset))
        is_known = torch.isin(wanted, known)
        found = torch.zeros(len(dataset), self.model.config.hidden_size)
        found[is_known] = values[0][order[torch.searchsorted(known, wanted[is_known])]]
        labels = torch.where(is_known, torch.from_numpy(dataset.labels()).long(), IGNORED_LABEL)
        return Features(found, labels, broken)

    def _load(self, file: Path, name: str) -> Tensor:
        """What a file of features has: "rows", the numbers of the rows, or their "features"; none if it is missing."""
        if not file.is_file():
            return torch.zeros(0, dtype=torch.long) if name == "rows" else torch.zeros(0, self.model.config.hidden_size)
        try:
            with safe_open(file, "pt") as stored:
                return stored.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise UsageError(f"the features in {file} cannot be read: {error}; delete the file.") from error


def _save(file: Path, rows: Tensor, values: Tensor) -> None:
    """Stores features, atomically."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file, alone=True) as unfinished:
        save_file({"rows": rows, "features": values}, unfinished)


def _paths_of(dataset: ImageDataset) -> Iterator[str]:
    """The files of all images that the rows of a data set only name."""
    feature = dataset.rows.features[dataset.image_column]
    for chunk in dataset.rows.data.column(dataset.image_column).chunks:
        if isinstance(feature, datasets.Image):
            chunk = chunk.field("path").filter(chunk.field("bytes").is_null())
        elif feature != datasets.Value("string"):
            return
        yield from (path for path in chunk.to_pylist() if path is not None)


def _rows_of(dataset: ImageDataset) -> np.ndarray:
    """The number of each image's row in the stored data."""
    return np.arange(len(dataset)) if dataset.chosen is None else dataset.chosen


def _without(dataset: ImageDataset, stored: Tensor) -> ImageDataset:
    """The part of a data set whose rows are not among the stored ones."""
    rows = _rows_of(dataset)
    return replace(dataset, chosen=rows[~np.isin(rows, stored.numpy())])
