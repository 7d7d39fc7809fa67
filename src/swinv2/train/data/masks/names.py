"""Names of classes, and the colours of classes, in files beside images with masks.

In: folders. Out: the names of the classes from the first file that is known, such as `classes.txt` or
`class_dict.csv`, and the class of each colour. It reads no image, and knows no layout of images and masks.
"""

import csv
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from swinv2.errors import UsageError, first_sentence

ADE20K_NAMES = "objectInfo150.txt"
"""ADE20K's table of classes."""

_Named = tuple[list[str], dict[int, int] | None]


def names_beside(folders: Sequence[Path]) -> tuple[tuple[str, ...], dict[int, int] | None, Path | None]:
    """Reads the names of the classes from the first file of `FILES` that a folder has. A table of colours comes first,
    because it has names, too.

    Args:
        folders: Where to look, in this order.

    Returns:
        The names; the class of each colour 0xRRGGBB, None if the file has no colours; the file. (), None and None if
        there is no file.

    Raises:
        UsageError: The file cannot be read, or names no classes.
    """
    files = [folder / name for folder in folders for name in FILES if (folder / name).is_file()]
    if not files:
        return (), None, None
    file = files[0]
    try:
        names, colours = FILES[file.name](file)
    except (ValueError, TypeError, KeyError, LookupError) as error:
        raise UsageError(
            f"{file} does not name classes: {first_sentence(error)}; correct it, or move it away."
        ) from error
    if not names:
        raise UsageError(f"{file} names no class; write the name of a class on each line, or delete it.")
    return tuple(names), colours, file


def read_lines(file: Path) -> list[str]:
    """The lines of a file that are not empty, without spaces around them.

    Raises:
        UsageError: The file cannot be read, or is no UTF-8.
    """
    try:
        return [line.strip() for line in file.read_text("utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read: {first_sentence(error)}; save it as UTF-8.") from error


def _from_lines(file: Path) -> _Named:
    """A name on each line."""
    return read_lines(file), None


def _from_json(file: Path) -> _Named:
    """The names by number, as transformers has them, or a list of names."""
    stored = json.loads("\n".join(read_lines(file)))
    by_number = (
        {int(number): str(name) for number, name in stored.items()}
        if isinstance(stored, dict)
        else dict(enumerate(stored))
    )
    if sorted(by_number) != list(range(len(by_number))):
        raise ValueError("the numbers are not 0, 1 and so on")
    return [by_number[number] for number in range(len(by_number))], None


def _from_ade20k(file: Path) -> _Named:
    """The first of several names in the last column, below a line with the names of the columns."""
    return [line.split("\t")[-1].split(",")[0].strip() for line in read_lines(file)[1:]], None


def _from_table(file: Path) -> _Named:
    """A table with the columns name, r, g and b."""
    header, *lines = csv.reader(read_lines(file), skipinitialspace=True)
    place = [[cell.strip().lower() for cell in header].index(column) for column in ("r", "g", "b", "name")]
    return _coloured([[line[column] for column in place] for line in lines], file)


def _from_colours(file: Path) -> _Named:
    """Red, green, blue and a name on each line."""
    return _coloured([re.split(r"[\s,]+", line, maxsplit=3) for line in read_lines(file)], file)


def _coloured(lines: list[list[str]], file: Path) -> _Named:
    """The names and the colours of the classes."""
    colours: dict[int, int] = {}
    for number, line in enumerate(lines):
        if len(line) != 4 or not all(value.strip().isdigit() and int(value) < 256 for value in line[:3]):
            raise ValueError(f"class {number + 1}, {' '.join(line)!r}, needs red, green, blue from 0 to 255 and a name")
        red, green, blue = map(int, line[:3])
        if colours.setdefault(red << 16 | green << 8 | blue, number) != number:
            raise ValueError(f"two classes have the colour ({red}, {green}, {blue})")
    return [line[3].strip() for line in lines], colours


FILES: dict[str, Callable[[Path], _Named]] = {
    "class_dict.csv": _from_table,
    "label_colors.txt": _from_colours,
    "classes.txt": _from_lines,
    "labels.txt": _from_lines,
    "names.txt": _from_lines,
    "id2label.json": _from_json,
    ADE20K_NAMES: _from_ade20k,
}
"""Names of files that name classes, and what reads them."""
