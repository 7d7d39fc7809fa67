"""Tells data of segmenters and detectors from folders of classes.

In: a folder. Out: an error for a training of a classifier, if the folder has masks or objects.
"""

from pathlib import Path

from swinv2.errors import UsageError
from swinv2.train.data.masks.folders import has_mask_folders
from swinv2.train.data.objects import coco, voc, yolo


def refuse_masks_and_objects(folder: Path) -> None:
    """Raises an error if a folder has images with masks or objects: a classifier would take `images` and `masks` for
    classes.

    Raises:
        UsageError: It has them; the message says which task to give.
    """
    # First: YOLO's folder `labels` could be one of masks.
    for format in (coco, yolo, voc):
        found = format.recognise(folder)
        if found is not None:
            raise UsageError(
                f"{folder} has images with objects ({found}), not classes of images; give --task detection or "
                "instances, or the folder whose folders are the classes."
            )
    if has_mask_folders(folder):
        raise UsageError(
            f"{folder} has images and masks, not classes of images; give --task segmentation, or the folder whose "
            "folders are the classes."
        )
