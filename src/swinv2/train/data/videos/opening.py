"""Opens videos with labels.

In: a source: a folder of class folders, a list, or a folder with a list for each split. Out: a `VideoDataset`. No
video is opened.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets

from swinv2.errors import UsageError, few
from swinv2.train.data.folders import SPLIT_OF, VIDEOS, open_folder
from swinv2.train.data.sources import take_split
from swinv2.train.data.videos.dataset import VideoDataset
from swinv2.train.data.videos.lists import LIST_SUFFIXES, is_list, lists_of_splits, open_list


def open_videos(source: str, split: str, *, names: Sequence[str] = ()) -> VideoDataset:
    """Opens a split of videos.

    Args:
        source: One of these:

            - a folder of class folders, possibly below `train`, `validation` or `test`; see `folders.open_folder`;
            - a list, see `lists.open_list`; it counts as any split;
            - a folder with a list for each split, see `lists.lists_of_splits`.
        split: Name of the split; "evaluation" for the first of `EVAL_SPLITS` that exists.
        names: Names of the classes, if the labels are numbers.

    Raises:
        UsageError: The source cannot be opened, or has no such split or no videos.
    """
    path = Path(source).expanduser()
    rows, found, splits = _open_rows(path, source, split)
    label = rows.features.get("label")
    known = tuple(label.names) if isinstance(label, datasets.ClassLabel) else ()
    if known and names and set(names) != set(known):
        raise UsageError(f"{source} has class names ({few(known)}); leave out --label-names-file ({few(names)}).")
    labels = None if label is None else "label"
    return VideoDataset(rows, VIDEOS.one, labels, known or tuple(names), source, found, splits)


def _open_rows(path: Path, source: str, split: str) -> tuple[Any, str | None, tuple[str, ...]]:
    """The rows of a split, its name, and the names of all splits; None and () if there are none."""
    if is_list(path):
        return open_list(path), None, ()
    if not path.is_dir():
        state = "is no list" if path.exists() else "does not exist"
        raise UsageError(
            f"{source!r} {state}; expected a folder of class folders with videos, or a list of videos and labels "
            f"({', '.join(LIST_SUFFIXES)})."
        )
    lists = lists_of_splits(path)
    if not lists:
        return open_folder(path, split, needs_labels=True, kind=VIDEOS)
    chosen, found, splits = take_split(dict[str, Any](lists), SPLIT_OF.get(split, split), source)
    return open_list(chosen), found, splits
