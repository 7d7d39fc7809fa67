"""Files and folders by a path or an address, on this machine and in stores that fsspec reaches (s3://, gs://, hf://).

In: paths and addresses. Out: open files, listings and bytes. Every failure to reach a place that a user named is a
`UsageError`. This module knows no image and no shard.
"""

import glob
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import IO, Any

from fsspec.core import url_to_fs

from swinv2.errors import UsageError, first_sentence
from swinv2.images import is_hidden

MOST_EXPANDED = 10_000_000
"""Largest number of names in a range such as {0000..0999}."""


def is_address(place: str) -> bool:
    """Whether a place is in a store, such as "s3://bucket/folder", and not on this machine."""
    return re.match(r"[a-z][a-z0-9+.-]*://", place, re.IGNORECASE) is not None


def absolute(place: str) -> str:
    """A path absolute, also one that begins with "~" or "file://"; an address as its store writes it.

    Raises:
        UsageError: See `store_of`.
    """
    if place.lower().startswith("file://"):
        place = place[len("file://") :]
    if is_address(place):
        store, path = store_of(place)
        return store.unstrip_protocol(path).rstrip("/")
    return os.path.abspath(os.path.expanduser(place))


def joined(folder: str, name: str) -> str:
    """The place of a name inside a folder; the name itself if it is absolute or an address."""
    if is_address(name):
        return name
    return f"{folder}/{name}" if is_address(folder) else os.path.join(folder, name)


def last_part(place: str) -> str:
    """The name of a file or folder, without its folders."""
    return PurePosixPath(place).name


def folder_of(place: str) -> str:
    """The folder of a file."""
    return place.rpartition("/")[0] if is_address(place) else os.path.dirname(place)


def store_of(place: str) -> tuple[Any, str]:
    """fsspec's file system for a place, and the path in it.

    Raises:
        UsageError: There is no such kind of store, or the package for it is not installed.
    """
    try:
        return url_to_fs(place)
    except ImportError as error:
        raise UsageError(f"{place!r} needs a package that is not installed: {first_sentence(error)}.") from error
    except ValueError as error:
        raise UsageError(f"{place!r} is in no store that fsspec knows: {first_sentence(error)}.") from error
    # Some stores are connected here.
    except Exception as error:
        raise UsageError(f"{place!r} cannot be reached: {type(error).__name__}: {first_sentence(error)}.") from error


@contextmanager
def reaching(place: str) -> Iterator[None]:
    """Turns any error into a sentence about a place; each store has exceptions of its own."""
    try:
        yield
    except UsageError:
        raise
    except FileNotFoundError as error:
        raise UsageError(f"there is no {place!r}.") from error
    except Exception as error:
        reason = f"{type(error).__name__}: {first_sentence(error)}" if is_address(place) else first_sentence(error)
        raise UsageError(f"{place!r} cannot be read: {reason}.") from error


def open_binary(place: str) -> IO[bytes]:
    """Opens a file to read its bytes.

    Raises:
        OSError: As the system or the store raises it.
    """
    if not is_address(place):
        return open(place, "rb")
    store, path = store_of(place)
    return store.open(path, "rb")


def read_many(places: Iterable[str]) -> Mapping[str, bytes | BaseException]:
    """Reads whole files of stores, at the same time where the store can; the error for one that cannot be read."""
    by_store: dict[int, tuple[Any, dict[str, str]]] = {}
    found: dict[str, bytes | BaseException] = {}
    for place in places:
        try:
            store, path = store_of(place)
        except UsageError as error:
            found[place] = error
            continue
        by_store.setdefault(id(store), (store, {}))[1][path] = place
    for store, paths in by_store.values():
        # `cat` takes some names for globs.
        plain = [path for path in paths if not glob.has_magic(path)]
        contents: dict[str, Any] = store.cat(plain, on_error="return") if plain else {}
        for path in paths.keys() - contents.keys():
            try:
                contents[path] = store.cat_file(path)
            except Exception as error:
                contents[path] = error
        found |= {paths[path]: content for path, content in contents.items()}
    return found


def expand_braces(pattern: str) -> list[str]:
    """The names that a pattern of a shell stands for.

    Args:
        pattern: A name with ranges of numbers, {0000..0999}, and lists, {train,validation}; other braces are kept.

    Raises:
        UsageError: A range has too many numbers, or its first one is larger than its last one.

    Example:

        >>> expand_braces("{a,b}-{08..10}.tar")
        ['a-08.tar', 'a-09.tar', 'a-10.tar', 'b-08.tar', 'b-09.tar', 'b-10.tar']
    """
    found = re.search(r"\{(?:([0-9]+)\.\.([0-9]+)|([^{}]*,[^{}]*))\}", pattern)
    if found is None:
        return [pattern]
    first, last, listed = found.groups()
    if listed is not None:
        values = listed.split(",")
    else:
        if not 0 <= int(last) - int(first) < MOST_EXPANDED:
            raise UsageError(
                f"{found[0]} in {pattern!r} is no range; expected the first and the last of at most {MOST_EXPANDED:,} "
                "numbers, as in {0000..0999}."
            )
        width = len(first) if first.startswith("0") or len(first) == len(last) else 0
        values = [f"{number:0{width}}" for number in range(int(first), int(last) + 1)]
    rest = expand_braces(pattern[found.end() :])
    return [pattern[: found.start()] + value + tail for value in values for tail in rest]


def matching(pattern: str) -> dict[str, dict[str, Any]]:
    """The files and folders that a glob matches, by name, each as fsspec describes it ("type", "size")."""
    store, path = store_of(pattern)
    with reaching(pattern):
        found: dict[str, dict[str, Any]] = store.glob(path, detail=True)
    named = {_place(pattern, store, name): about for name, about in found.items()}
    return dict(sorted(named.items()))


def described(places: Iterable[str]) -> dict[str, dict[str, Any] | None]:
    """What fsspec knows of files or folders; None for one that does not exist. A folder of several of them is listed
    once."""
    places = list(places)
    folders: dict[str, list[str]] = {}
    for place in places:
        folders.setdefault(folder_of(place), []).append(place)
    found: dict[str, dict[str, Any] | None] = {}
    for folder, inside in folders.items():
        if len(inside) > 1 and is_address(folder):
            store, path = store_of(folder)
            with reaching(folder):
                try:
                    entries = store.ls(path, detail=True)
                except FileNotFoundError:
                    entries = []
            known = {_place(folder, store, entry["name"]): entry for entry in entries}
            found |= {place: known.get(place) for place in inside}
            continue
        for place in inside:
            store, path = store_of(place)
            with reaching(place):
                try:
                    found[place] = store.info(path)
                except (FileNotFoundError, NotADirectoryError):
                    found[place] = None
    return {place: found[place] for place in places}


def _place(like: str, store: Any, path: str) -> str:
    """The address or path of a file, from its path in a store."""
    return store.unstrip_protocol(path) if is_address(like) else path


def walk(folder: str) -> Iterator[str]:
    """The names of all files in a folder and its subfolders, relative to it, without hidden ones. Links to folders are
    followed; a folder comes once, so links that form a circle end. The memory does not grow with the number of files in
    a folder of this machine.

    Raises:
        UsageError: A folder cannot be listed.
    """
    with reaching(folder):
        yield from _walk_store(folder) if is_address(folder) else _walk_here(folder)


def _walk_here(folder: str) -> Iterator[str]:
    """`walk` on this machine."""
    pending, searched = [""], set[str]()
    while pending:
        below = pending.pop()
        actual = os.path.realpath(os.path.join(folder, below))
        if actual in searched:
            continue
        searched.add(actual)
        folders: list[str] = []
        with os.scandir(os.path.join(folder, below)) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                if entry.is_dir():
                    folders.append(f"{below}{entry.name}/")
                else:
                    yield f"{below}{entry.name}"
        # By name, so that it does not depend on the file system which of two links to a folder is followed.
        pending += sorted(folders, reverse=True)


def _walk_store(folder: str) -> Iterator[str]:
    """`walk` in a store."""
    store, top = store_of(folder)
    if not store.isdir(top):
        raise FileNotFoundError(folder)
    top, pending = top.rstrip("/"), [top.rstrip("/")]
    while pending:
        place, folders = pending.pop(), list[str]()
        for entry in sorted(store.ls(place, detail=True), key=lambda entry: entry["name"]):
            path: str = entry["name"].rstrip("/")
            # Stores list a folder itself if it was made as an empty object.
            if path == place or is_hidden(last_part(path)):
                continue
            if entry["type"] == "directory":
                folders.append(path)
            else:
                yield path[len(top) + 1 :]
        pending += reversed(folders)


def is_inside(place: str, folder: str) -> bool:
    """Whether a place is in a folder, or in a folder inside it."""
    return place.startswith(f"{folder.rstrip('/')}/")


def is_in_memory(place: str) -> bool:
    """Whether a place is in the memory of this process, which no other process sees."""
    return place.lower().startswith("memory://")
