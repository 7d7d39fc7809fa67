"""The model inside the package: a small one for CIFAR-10, and twenty test images to try it on.

Out: paths. This module knows where they lie and how the samples are named.
"""

from dataclasses import dataclass
from pathlib import Path

from swinv2.errors import UsageError

FOLDER = Path(__file__).parent.parent / "checkpoints" / "cifar10"


@dataclass(frozen=True)
class Sample:
    """A shipped image.

    Attributes:
        path: Its file, named index_label.png; the index counts the draw from the test images.
        label: What it shows, by the data set's own labels.
    """

    path: Path
    label: str


def shipped_model() -> Path:
    """The folder of the shipped model.

    Raises:
        UsageError: The installation has none.
    """
    if not (FOLDER / "config.json").is_file():
        raise UsageError(
            f"this installation of swinv2 has no model in {FOLDER}; install the package again, or name a model with "
            "--model."
        )
    return FOLDER


def shipped_samples() -> list[Sample]:
    """The sample images, in the order in which they were drawn.

    Raises:
        UsageError: The installation has none.
    """
    paths = sorted((FOLDER / "samples").glob("*_*.png"))
    if not paths:
        raise UsageError(f"this installation of swinv2 has no images in {FOLDER / 'samples'}; install it again.")
    return [Sample(path, path.stem.split("_", 1)[1]) for path in paths]
