"""Lists of videos with labels.

In: a text file that has a video on each line: CSV with the columns path and label, and possibly start and end in
seconds; or Kinetics' lists, "path label" with a space between. Out: rows. No video is opened.
"""

import csv
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets

from swinv2.errors import UsageError
from swinv2.train.data.folders import SPLIT_OF, as_texts
from swinv2.video.files import is_video_name

LIST_SUFFIXES = (".csv", ".tsv", ".txt")

COLUMNS: dict[str, tuple[str, ...]] = {
    "path": ("path", "video", "file", "filename", "file_name", "video_path"),
    "label": ("label", "class", "target", "label_index"),
    "start": ("start", "start_time", "time_start"),
    "end": ("end", "end_time", "time_end"),
}
"""The names of each column in the first line of a list."""

CHECKED = 16
"""Of a list, so many files are looked for when it is opened."""


class Entry(NamedTuple):
    """A line of a list: file, label, and the segment in seconds; the whole file if there is none."""

    path: str
    label: str
    start: float | None = None
    end: float | None = None


def is_list(path: Path) -> bool:
    """Whether a file may be a list of videos, by its suffix."""
    return path.suffix.lower() in LIST_SUFFIXES and path.is_file()


def lists_of_splits(folder: Path) -> dict[str, Path]:
    """The list of each split in a folder: the files of which one word of the name is that of a split, such as
    `train.csv` and `kinetics400_val_list_videos.txt`.

    Raises:
        UsageError: A split has several.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        splits = {SPLIT_OF[word] for word in re.split(r"[\W_]+", path.stem.lower()) if word in SPLIT_OF}
        if not is_list(path) or len(splits) != 1:
            continue
        split = splits.pop()
        if split in found:
            raise UsageError(
                f"{folder} has two lists of the split {split!r}, {found[split].name} and {path.name}; give one of them "
                "with --data, and those of other splits with --eval-data."
            )
        found[split] = path
    return found


def open_list(file: Path) -> datasets.Dataset:
    """Reads a list.

    Args:
        file: The list. Paths in it are relative to its folder.

    Returns:
        Rows with the columns "video" and "label" and, if a line has them, "start" and "end". Labels that are all
        numbers are integers, others are classes in the order of the alphabet.

    Raises:
        UsageError: The list is empty or cannot be read, a line is wrong, or none of its first files exists.
    """
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the list {file} cannot be read: {error}") from error
    entries = list(_entries(file, lines))
    if not entries:
        raise UsageError(f"the list {file} names no video; expected lines such as 'dance/1.mp4,dance'.")
    paths = [os.path.join(file.parent, entry.path) for entry in entries]
    _refuse_absent(file, entries, paths)
    columns: dict[str, list[Any]] = {"video": as_texts(paths)}
    features: dict[str, Any] = {"video": datasets.Value("string")}
    labels = [entry.label for entry in entries]
    if all(label.isdecimal() for label in labels):
        columns["label"], features["label"] = [int(label) for label in labels], datasets.Value("int64")
    else:
        names = sorted(set(labels))
        numbers = {name: number for number, name in enumerate(names)}
        columns["label"] = [numbers[label] for label in labels]
        features["label"] = datasets.ClassLabel(names=names)
    if any(entry.start is not None or entry.end is not None for entry in entries):
        columns["start"] = [entry.start or 0.0 for entry in entries]
        columns["end"] = [entry.end for entry in entries]
        features |= {"start": datasets.Value("float64"), "end": datasets.Value("float64")}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def _entries(file: Path, lines: Sequence[str]) -> "list[Entry]":
    """The entries of the lines of a list."""
    rows = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        return []
    first = rows[0][1]
    separator = next((each for each in (",", "\t") if len(_cells(first, each)) > 1), " ")
    places: Mapping[str, int] = {"path": 0, "label": 1, "start": 2, "end": 3}
    header = _places_of(_cells(first, separator))
    if header:
        places, rows = header, rows[1:]
    elif separator != " ":
        first_path = _cells(first, separator)[0]
        if not is_video_name(first_path) and not os.path.exists(os.path.join(file.parent, first_path)):
            names = "; ".join(f"{column}: {', '.join(known)}" for column, known in COLUMNS.items())
            raise UsageError(
                f"the first line of {file} is {first!r}: {first_path!r} is no video, and these are not known names of "
                f"columns ({names})."
            )
    return [_entry(f"line {number} of {file}", _cells(line, separator), places) for number, line in rows]


def _cells(line: str, separator: str) -> list[str]:
    """The cells of a line. With spaces between, only the last one separates: paths may have spaces."""
    cells = line.rsplit(maxsplit=1) if separator == " " else next(csv.reader([line], delimiter=separator))
    return [cell.strip() for cell in cells]


def _places_of(cells: Sequence[str]) -> dict[str, int]:
    """The place of each column, if the first line has the names of path and label; otherwise nothing."""
    named = [cell.lower() for cell in cells]
    places = {
        column: next(named.index(name) for name in names if name in named)
        for column, names in COLUMNS.items()
        if not set(names).isdisjoint(named)
    }
    return places if {"path", "label"} <= places.keys() else {}


def _entry(where: str, cells: Sequence[str], places: Mapping[str, int]) -> Entry:
    """The entry of a line.

    Args:
        where: The line and the file, for errors.
        cells: The cells of the line.
        places: The place of each column.
    """
    found = {column: cells[place] for column, place in places.items() if place < len(cells)}
    if not found.get("path") or not found.get("label"):
        raise UsageError(f"{where} is {', '.join(cells)!r}; expected the path of a video and its label.")
    seconds: dict[str, float | None] = {}
    for column in ("start", "end"):
        try:
            seconds[column] = float(found[column]) if found.get(column) else None
        except ValueError as error:
            raise UsageError(f"{where} has the {column} {found[column]!r}; expected seconds such as 2.5.") from error
    start, end = seconds["start"] or 0.0, seconds["end"]
    if not start >= 0.0 or (end is not None and not end > start):
        raise UsageError(f"{where} is a segment from {start:g} to {end:g} s; expected an end after the start.")
    return Entry(found["path"], found["label"], seconds["start"], end)


def _refuse_absent(file: Path, entries: Sequence[Entry], paths: Sequence[str]) -> None:
    """Raises an error if none of some files of a list exists: the paths are then relative to another folder. Single
    absent files are unreadable videos, which a training counts and names."""
    step = max(len(paths) // CHECKED, 1)
    if not any(os.path.exists(path) for path in paths[::step]):
        raise UsageError(
            f"the list {file} names {entries[0].path!r}, and neither that nor any other of its videos that were looked "
            f"for exists; its paths are relative to {file.parent}. Move the list, or correct the paths."
        )
