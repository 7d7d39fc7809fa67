"""The folder of a run: files that are published as a whole, on this machine or in a store.

In: a folder and the content of files. Out: complete files, or none. A file of this machine is written under a temporary
name, flushed to the disk and renamed (`disk.whole_file`). A store gets it in one upload, and shows it when the upload
is complete. This module knows no image.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from swinv2.disk import WriteError, delete_abandoned, force_to_disk, whole_file
from swinv2.errors import UsageError
from swinv2.shards.places import absolute, is_address, joined, last_part, reaching, store_of

ATOMIC_STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory")
"""Stores that show a file only when its upload is complete."""


class Output:
    """A folder with files of answers and lists.

    Args:
        place: A path or an address.

    Raises:
        UsageError: The store may show a file before it is complete, or its package is not installed.
    """

    def __init__(self, place: str) -> None:
        kind = place.partition("://")[0].lower()
        if is_address(place) and kind not in (*ATOMIC_STORES, "file"):
            raise UsageError(
                f"--output is {place!r}; {kind}:// may show files before they are complete. Give a folder of this "
                f"machine, or one of {', '.join(f'{store}://' for store in ATOMIC_STORES[:-1])}."
            )
        self.place = absolute(place)

    def prepare(self, *folders: str) -> None:
        """Makes the folder and folders in it, and deletes what killed processes of this machine left there.

        Raises:
            UsageError: It is a file, or may not be written to.
        """
        if is_address(self.place):
            return
        for folder in ("", *folders):
            path = Path(self.place, folder)
            if path.exists() and not path.is_dir():
                raise UsageError(f"--output {self.place!r}: {str(path)!r} is a file; expected a folder, or a new one.")
            path.mkdir(parents=True, exist_ok=True)
            if not os.access(path, os.W_OK):
                raise UsageError(f"--output {self.place!r}: the folder {str(path)!r} may not be written to.")
            delete_abandoned(path)

    def file(self, name: str) -> str:
        """The place of a file."""
        return joined(self.place, name)

    def names(self, folder: str) -> set[str]:
        """The names of the files in a folder of the output."""
        place = self.file(folder)
        if not is_address(place):
            return set(os.listdir(place)) if os.path.isdir(place) else set()
        store, path = store_of(place)
        # Another process may have added files since this one listed the folder.
        store.invalidate_cache(path)
        with reaching(place):
            try:
                return {last_part(entry) for entry in store.ls(path, detail=False)}
            except FileNotFoundError:
                return set()

    def read(self, name: str) -> bytes | None:
        """The content of a file; None if it does not exist."""
        place = self.file(name)
        store, path = store_of(place)
        with reaching(place):
            try:
                return store.cat_file(path)
            except FileNotFoundError:
                return None

    def publish_first(self, name: str, text: str) -> None:
        """Writes a file, unless it exists. In a folder of this machine, the first of several processes writes it; in a
        store, the last one that began before the first had written."""
        place = self.file(name)
        if is_address(place):
            with self.publish(name) as path:
                path.write_text(text, encoding="utf-8")
            return
        final = Path(place)
        with tempfile.TemporaryDirectory(dir=final.parent, prefix=".swinv2-") as folder:
            whole = Path(folder, final.name)
            whole.write_text(text, encoding="utf-8")
            force_to_disk(whole)
            with suppress(FileExistsError):
                os.link(whole, final)

    @contextmanager
    def publish(self, name: str) -> Iterator[Path]:
        """Yields a path of this machine; what is written there becomes the file, unless an error occurs.

        Raises:
            OSError: The disk is full, or failed.
            WriteError: Something else has the name of the file, or another process deleted the unfinished one.
        """
        place = self.file(name)
        if is_address(place):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, last_part(name))
                yield path
                store, target = store_of(place)
                with reaching(place):
                    store.put_file(str(path), target)
            return
        final = Path(place)
        with whole_file(final) as partial:
            yield partial
            force_to_disk(partial)
        if not final.exists():
            raise WriteError(f"{place!r} could not be written: its unfinished file has disappeared.")
