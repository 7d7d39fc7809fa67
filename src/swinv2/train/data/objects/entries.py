"""Reads the values of entries in COCO's lists, such as the boxes of all annotations.

In: a list of a parsed JSON file, and a key. Out: the values of that key in all entries, as an array or a list. If one
is missing or wrong, the error names the file and the entry: "image", "annotation" or "category", and its id. This
module reads no file.
"""

from pathlib import Path
from typing import Any

import numpy as np

from swinv2.console import shown
from swinv2.errors import UsageError


def name_entry(entry: Any, index: int, what: str) -> str:
    """What an entry of a list is called in messages: by its id, otherwise by its position."""
    number = entry.get("id") if isinstance(entry, dict) else None
    return f"{what} {number}" if number is not None else f"{what} at position {index}, counted from 0,"


def read_numbers(
    entries: list[Any], key: str, what: str, file: Path, length: int = 0, default: float | None = None
) -> np.ndarray:
    """The numbers of all entries.

    Args:
        entries: The list.
        key: The key of the numbers.
        what: What an entry is, for messages: "image", "annotation" or "category".
        file: The file, for messages.
        length: Number of numbers that each entry has in a list; 0 for one number without a list.
        default: What a missing or null number becomes; None if that is an error.

    Returns:
        (entries,), or (entries, length), float64.

    Raises:
        UsageError: A number is missing, is none, or is too large.
    """
    shape = (len(entries), length) if length else (len(entries),)
    try:
        if default is None:
            values = [entry[key] for entry in entries]
        else:
            values = [default if (value := entry.get(key)) is None else value for entry in entries]
        numbers = np.array(values)
        if not entries or (numbers.dtype.kind in "biuf" and numbers.shape == shape):
            return numbers.astype(np.float64).reshape(shape)
    except (KeyError, TypeError, ValueError, AttributeError):
        pass  # The search for the wrong entry names it.
    expected = f"{length} numbers, left, top, width and height in pixels" if length else "a number"
    raise _wrong_entry(entries, key, what, file, lambda value: _is_number(value, length), expected, default is not None)


def read_integers(entries: list[Any], key: str, what: str, file: Path) -> np.ndarray:
    """The integers of all entries, (entries,) int64; see `read_numbers`.

    Raises:
        UsageError: One is missing, or is no integer.
    """
    numbers = read_numbers(entries, key, what, file)
    wrong = ~np.isfinite(numbers) | (np.trunc(numbers) != numbers)
    if wrong.any():
        index = int(wrong.argmax())
        raise UsageError(
            f"{shown(file)}, {name_entry(entries[index], index, what)} has the {key!r} {numbers[index]}; expected an "
            "integer."
        )
    return numbers.astype(np.int64)


def read_texts(entries: list[Any], key: str, what: str, file: Path) -> list[str]:
    """The texts of all entries; see `read_numbers`.

    Raises:
        UsageError: One is missing, or is no text.
    """
    if all(isinstance(entry, dict) and isinstance(entry.get(key), str) for entry in entries):
        return [entry[key] for entry in entries]
    raise _wrong_entry(entries, key, what, file, lambda value: isinstance(value, str), "text")


def _is_number(value: Any, length: int) -> bool:
    """Whether a value is a number, or a list of so many numbers."""
    if length:
        return isinstance(value, list) and len(value) == length and all(_is_number(part, 0) for part in value)
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)


def _wrong_entry(
    entries: list[Any], key: str, what: str, file: Path, is_right: Any, expected: str, is_optional: bool = False
) -> UsageError:
    """The error for the first entry whose value is wrong."""
    for index, entry in enumerate(entries):
        called = f"{shown(file)}, {name_entry(entry, index, what)}"
        if not isinstance(entry, dict):
            return UsageError(f"{called} is {str(entry)[:60]!r}; expected an object with the key {key!r}.")
        if key not in entry and not is_optional:
            return UsageError(f"{called} has no key {key!r}; expected {expected}. Add it, or delete the {what}.")
        value = entry.get(key)
        if not (is_optional and value is None) and not is_right(value):
            return UsageError(f"{called} has the {key!r} {str(value)[:60]!r}; expected {expected}. Fix or delete it.")
    return UsageError(f"{shown(file)} has values of {key!r} that are out of range; expected {expected}.")


def look_up(entries: list[Any], key: str, index_of: dict[int, int], where: str, file: Path) -> np.ndarray:
    """Finds what annotations refer to.

    Args:
        entries: The annotations.
        key: The key of the id of what they refer to.
        index_of: The index of each id.
        where: The list of what they refer to, for messages.
        file: The file, for messages.

    Returns:
        (annotations,), int64: indices.

    Raises:
        UsageError: An id is missing, is no integer or is unknown.
    """
    numbers = read_integers(entries, key, "annotation", file)
    found = np.fromiter((index_of.get(number, -1) for number in numbers.tolist()), np.int64, len(numbers))
    unknown = np.flatnonzero(found < 0)
    if len(unknown):
        index = int(unknown[0])
        raise UsageError(
            f"{shown(file)}, {name_entry(entries[index], index, 'annotation')} has the {key!r} {numbers[index]}, which "
            f"is not in {where} ({len(unknown):,} such annotations); add it there, or delete the annotations."
        )
    return found


def check_once(ids: np.ndarray, what: str, file: Path) -> None:
    """Raises an error if an id is there twice.

    Args:
        ids: The ids (n,).
        what: What the ids are, for the message.
        file: The file, for the message.

    Raises:
        UsageError: An id is there twice.
    """
    values, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        number = values[counts > 1][0]
        raise UsageError(
            f"{shown(file)} has the {what} {number} {counts.max()} times; expected each once. Renumber them."
        )
