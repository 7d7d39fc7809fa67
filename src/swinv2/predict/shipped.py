"""Finds the model inside the package, a small one for CIFAR-10, and its twenty sample images.

Out: paths. This module knows the folder and the names of the samples.
"""

from pathlib import Path

from swinv2.errors import UsageError

FOLDER = Path(__file__).parent.parent / "checkpoints" / "cifar10"


def shipped_model() -> Path:
    """The folder of the shipped model.

    Raises:
        UsageError: The installation has none.
    """
    if not (FOLDER / "config.json").is_file():
        raise UsageError(
            f"this installation of swinv2 has no model in {FOLDER}; reinstall the package, or give another model with "
            "--model."
        )
    return FOLDER


def shipped_samples() -> dict[Path, str]:
    """The sample images and their labels, in the order in which they were drawn from the test images.

    A file is named index_label.png; the index is the position in the random draw.

    Raises:
        UsageError: The installation has none.
    """
    paths = sorted((FOLDER / "samples").glob("*_*.png"))
    if not paths:
        raise UsageError(f"this installation of swinv2 has no images in {FOLDER / 'samples'}; reinstall it.")
    return {path: path.stem.split("_", 1)[1] for path in paths}
