"""Folders of images and masks as people have them.

In: a folder in one of the usual layouts: parallel folders, masks beside their images, VOC's lists, CamVid's folders.
Out: the pairs of a split, and what the layout says about the classes. What is left out is named in a warning. It reads
no mask, and no names of classes.
"""

import logging
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import datasets
from PIL import Image

from swinv2.console import shown
from swinv2.errors import UsageError, few
from swinv2.images import images_inside
from swinv2.train.data.dataset import ImageDataset
from swinv2.train.data.folders import SPLIT_OF, as_texts, folders_in, name_of_split
from swinv2.train.data.masks.dataset import MaskDataset
from swinv2.train.data.masks.names import ADE20K_NAMES, read_lines
from swinv2.train.data.sources import is_saved, take_split

logger = logging.getLogger(__name__)

IMAGE_FOLDERS = ("images", "image", "img", "imgs", "jpegimages", "leftimg8bit")
MASK_FOLDERS = ("masks", "mask", "labels", "label", "annotations", "segmentationclass", "gtfine")
"""Names of parallel folders of images and of masks, in lower case."""

IMAGE_SUFFIXES = ("_leftImg8bit", "_sat")
MASK_SUFFIXES = ("_gtFine_labelTrainIds", "_gtFine_labelIds", "_mask", "_label", "_L")
"""What the stems of images and of masks may have at their ends besides the common part."""

_OTHER_FILES = ("_gtFine_color", "_gtFine_instanceIds", "_gtFine_instanceTrainIds")
"""Ends of the stems of images beside Cityscapes' masks that are no masks of classes."""

CAMVID = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")
"""The classes of CamVid in SegNet's layout; the value after them is ignored."""

_Pair = tuple[Path, Path]


@dataclass(frozen=True)
class Layout:
    """A folder of images and masks.

    Attributes:
        folder: The folder.
        roots: The folders of the images and of the masks of each split; of None if there are no splits.
        stems: The stems of each split, if all splits are in the same folders.
        names, ignore_index, reduce_labels: What the layout says about the classes.
    """

    folder: Path
    roots: dict[str | None, _Pair]
    stems: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    names: tuple[str, ...] = ()
    ignore_index: int | None = None
    reduce_labels: bool = False


def recognise(folder: Path, depth: int = 2) -> Layout | None:
    """Recognises the layout of a folder.

    Args:
        folder: The folder.
        depth: So many folders, each the only one in the other, may be around the images and masks.

    Returns:
        The layout; None if it is none of the known ones.

    Raises:
        UsageError: There are several folders of images, of masks or of one split.
    """
    if is_saved(folder):
        return None
    layout = _with_annot(folder) or _parallel(folder) or _side_by_side(folder)
    below = folders_in(folder)
    if layout is None and depth and len(below) == 1 and below[0].is_dir():
        return recognise(below[0], depth - 1)
    return layout


def has_mask_folders(folder: Path) -> bool:
    """Whether a folder has CamVid's layout, or folders of images and of masks beside each other."""
    places = [folder, *_split_folders(folder).values()]
    called = ({path.name.lower() for path in folders_in(place)} for place in places)
    is_parallel = any(not names.isdisjoint(IMAGE_FOLDERS) and not names.isdisjoint(MASK_FOLDERS) for names in called)
    return is_parallel or _with_annot(folder) is not None


def _with_annot(folder: Path) -> Layout | None:
    """CamVid as SegNet has it: each split has a folder of images, and one with "annot" at its end."""
    splits = _split_folders(folder).items()
    pairs = {split: (path, path.with_name(f"{path.name}annot")) for split, path in splits}
    if not any(masks.is_dir() for _, masks in pairs.values()):
        return None
    return Layout(folder, {**pairs}, names=CAMVID, ignore_index=len(CAMVID))


def _parallel(folder: Path) -> Layout | None:
    """A folder of images beside a folder of masks, with folders of splits inside or outside."""
    roots = _parallel_roots(folder)
    if roots is None:
        outside = {split: _parallel_roots(path) for split, path in _split_folders(folder).items()}
        pairs = {split: found for split, found in outside.items() if found is not None}
        return Layout(folder, {**pairs}) if pairs else None
    images, masks = roots
    of_images, of_masks = _split_folders(images), _split_folders(masks)
    is_ade20k = folder.name == "ADEChallengeData2016" or (folder / ADE20K_NAMES).is_file()
    if of_images:
        # Masks without folders of splits may belong to the images of any split.
        pairs = {
            split: (path, of_masks.get(split, masks / path.name if of_masks else masks))
            for split, path in of_images.items()
        }
        return Layout(folder, {**pairs}, reduce_labels=is_ade20k)
    lists = sorted((folder / "ImageSets" / "Segmentation").glob("*.txt"))
    stems = {SPLIT_OF.get(path.stem, path.stem): read_lines(path) for path in lists}
    return Layout(folder, dict.fromkeys(stems, roots) if stems else {None: roots}, stems, reduce_labels=is_ade20k)


def _parallel_roots(folder: Path) -> _Pair | None:
    """The folder of images and the folder of masks in a folder. Among several, those without images do not count."""
    roots: list[Path] = []
    for what, names in (("images", IMAGE_FOLDERS), ("masks", MASK_FOLDERS)):
        found = [path for path in folders_in(folder) if path.name.lower() in names]
        if len(found) > 1:
            found = [path for path in found if images_inside(path)] or found
        if len(found) > 1:
            raise UsageError(
                f"{folder} has several folders of {what}, {few([path.name for path in found])}; move all but one away."
            )
        roots += found
    return (roots[0], roots[1]) if len(roots) == 2 else None


def _side_by_side(folder: Path) -> Layout | None:
    """Masks beside their images in the same folder, possibly in folders of splits."""
    splits: dict[str | None, Path] = {**_split_folders(folder)} or {None: folder}
    roots: dict[str | None, _Pair] = {split: (root, root) for split, root in splits.items() if _separate(root)[1]}
    return Layout(folder, roots) if roots else None


def _separate(root: Path) -> tuple[list[Path], list[Path]]:
    """The images and the masks in one folder; no masks if none is beside its image."""
    files = images_inside(root)
    named = {file for file in files if file.stem.endswith(MASK_SUFFIXES)}
    others = {file.with_suffix("") for file in files if file.suffix.lower() != ".png"}
    beside = {file for file in files if file.suffix.lower() == ".png" and file.with_suffix("") in others}
    if beside and not _is_mask(min(beside)):
        beside = set[Path]()
    for masks in (named, beside):
        images = [file for file in files if file not in masks]
        if masks and _match(images, root, sorted(masks), root)[0]:
            return images, sorted(masks)
    return files, []


def _is_mask(file: Path) -> bool:
    """Whether a PNG beside an image of the same stem is its mask: it has one channel, or cannot be read."""
    try:
        with Image.open(file) as image:
            return len(image.getbands()) == 1
    except (OSError, SyntaxError, ValueError):
        return True


def _split_folders(folder: Path) -> dict[str, Path]:
    """The folder of each split, directly in a folder."""
    found: dict[str, Path] = {}
    for path in folders_in(folder):
        split = SPLIT_OF.get(path.name.lower())
        if split in found:
            raise UsageError(f"{folder} has two folders of one split, {found[split].name} and {path.name}; join them.")
        if split is not None:
            found[split] = path
    return found


def open_layout(layout: Layout, source: str, split: str, reports: bool) -> MaskDataset:
    """Finds the pairs of a split of a folder.

    Args:
        layout: The layout of the folder.
        source: The source, for messages.
        split: Name of the split; "evaluation" for the first of `EVAL_SPLITS` that exists.
        reports: Whether a split without pairs is an error, and what is left out is named in a warning.

    Returns:
        The data set, whose classes have no names yet.

    Raises:
        UsageError: There is no such split, it has no pairs, or two files have the same stem.
    """
    found = None
    if None in layout.roots:
        name_of_split(layout.folder, split, {})
    else:
        _, found, _ = take_split(layout.roots, SPLIT_OF.get(split, split), source)
    image_root, mask_root = layout.roots[found]
    if image_root == mask_root:
        images, masks = _separate(image_root)
    else:
        images, masks = images_inside(image_root), images_inside(mask_root)
    without: list[str] = []
    if found in layout.stems:
        listed = set(layout.stems[found])
        images, masks = [[file for file in files if file.stem in listed] for files in (images, masks)]
        without = sorted(listed - {image.stem for image in images})
    pairs, images_alone, masks_alone = _match(images, image_root, masks, mask_root)
    if reports and not pairs:
        if not images:
            raise UsageError(f"{shown(image_root)} has no images{f' of the split {found!r}' if found else ''}.")
        raise UsageError(
            f"none of the {len(images):,} images in {shown(image_root)} has a mask in {shown(mask_root)}, where "
            f"{len(masks):,} are; {shown(images[0])} needs a mask {images[0].stem}.png, possibly with "
            f"{' or '.join(MASK_SUFFIXES[-3:])} before the point."
        )
    for what, files in (("images without a mask", images_alone), ("masks without an image", masks_alone)):
        if files and reports:
            logger.warning(f"{len(files):,} {what} are left out, first {shown(files[0])}")
    if without and reports:
        logger.warning(f"{len(without):,} images of the list of {found!r} do not exist in {image_root}: {few(without)}")
    columns = {"image": as_texts([image for image, _ in pairs]), "mask": as_texts([mask for _, mask in pairs])}
    features = {"image": datasets.Image(decode=False), "mask": datasets.Image(decode=False)}
    rows = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    splits = tuple(split for split in layout.roots if split is not None)
    return MaskDataset(ImageDataset(rows, "image", None, (), source, found, splits), "mask")


def _match(
    images: list[Path], image_root: Path, masks: list[Path], mask_root: Path
) -> tuple[list[_Pair], list[Path], list[Path]]:
    """The pairs of images and masks whose paths below their folders are equal, except for suffixes; the images and the
    masks that are left.

    Raises:
        UsageError: Two images or two masks have the same stem.
    """
    of_key: dict[str, Path] = {}
    for image in images:
        other = of_key.setdefault(_key(image, image_root, IMAGE_SUFFIXES), image)
        if other is not image:
            raise UsageError(
                f"{shown(other)} and {shown(image)} have the same stem, so their masks are not clear; rename one."
            )
    of_image: dict[Path, Path] = {}
    alone: list[Path] = []
    for mask in masks:
        keys = (_key(mask, mask_root, suffixes) for suffixes in (IMAGE_SUFFIXES, MASK_SUFFIXES))
        image = next((of_key[key] for key in keys if key in of_key), None)
        if image is None:
            alone += [] if mask.stem.endswith(_OTHER_FILES) else [mask]
            continue
        other = of_image.setdefault(image, mask)
        if MASK_SUFFIXES[0] in mask.stem:
            # Cityscapes' labels for training are made from the others, and stay beside them.
            of_image[image] = mask
        elif other is not mask and MASK_SUFFIXES[0] not in other.stem:
            raise UsageError(f"{shown(other)} and {shown(mask)} are both masks of {shown(image)}; move one away.")
    pairs = [(image, of_image[image]) for image in images if image in of_image]
    return pairs, [image for image in images if image not in of_image], alone


def _key(file: Path, root: Path, suffixes: Sequence[str]) -> str:
    """The path of a file below a folder, without its format and without one of some suffixes of its stem."""
    text = file.relative_to(root).with_suffix("").as_posix()
    suffix = next((suffix for suffix in suffixes if text.endswith(suffix)), "")
    # macOS stores names in another Unicode form.
    return unicodedata.normalize("NFC", text.removesuffix(suffix))
