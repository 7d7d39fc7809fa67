"""The settings of an export, and what is known about it in the end."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swinv2.lengths import Pair

BATCH = 8
"""Images of a batch, for comparisons and measurements of speed."""


@dataclass
class ExportSettings:
    """Settings of an export.

    Attributes:
        format: One of `FORMATS`.
        sizes: Image sizes (height, width), a graph for each; empty for the size of the model's image processor.
        answers: See `sources.open_source`.
        takes_bytes: Whether the graphs take pixels of eight bits, and normalise them.
        images: Real images for the comparison; empty for the photographs of the package.
        evaluation: Labelled images (see `train.data.sources.open_dataset`), on which the accuracy is measured before
            and after.
        split: Their split.
        int8: Whether products are computed in int8.
        calibration: Images from the application, for int8.
        accepts: Whether to write the folder even if the answers differ.
        target: "triton" for a model repository of Triton; None for a folder that this package runs.
    """

    format: str
    sizes: Sequence[Pair] = ()
    answers: str | None = None
    takes_bytes: bool = False
    images: Sequence[Path] = ()
    evaluation: str | None = None
    split: str = "evaluation"
    int8: bool = False
    calibration: Sequence[Path] = ()
    accepts: bool = False
    target: str | None = None


@dataclass
class Report:
    """What is known about an export, as in its `report.json`.

    Attributes:
        source: The model's folder or name.
        format, precision: The format; "float32" or "int8".
        input: Name, layout and type of the images.
        sizes: For each image size its graph's file, the difference from the source, the speed in images a second of
            source and export with batches of `BATCH` images, the seconds of its export and, with labelled images, the
            accuracy of source and export.
        bytes: Size of the folder's graphs.
        machine, versions: Where the speed was measured, and the packages.
        accepted: What was too different, if it was accepted.
    """

    source: str
    format: str
    precision: str
    input: dict[str, Any]
    sizes: list[dict[str, Any]] = field(default_factory=list)
    bytes: int = 0
    machine: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    accepted: list[str] = field(default_factory=list)
