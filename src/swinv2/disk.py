"""Files and folders that are written atomically.

In: the place of a file or a folder. Out: nothing but that. This module knows no format.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from swinv2.errors import UsageError

UNFINISHED = ".unfinished-"
"""How the names of temporary folders begin."""

REPLACED = "-replaced"
"""How the name of a folder ends while another one takes its place."""


class WriteError(UsageError):
    """A folder could not be written."""


@contextmanager
def whole_file(output: Path, alone: bool = False) -> Iterator[Path]:
    """Lends a temporary name in the same folder; what was written there gets the real name if nothing failed.

    Args:
        output: The file. An old one of that name is replaced, unless nothing was written.
        alone: Whether no other process writes this file meanwhile. The temporary name is then always the same, so that
            what a killed process left there is gone with the next one's.
    """
    writer = "" if alone else f".{os.getpid()}"
    partial = output.with_name(f".{output.name}{writer}.part")
    partial.unlink(missing_ok=True)
    # safetensors makes files that only their owner may read; a result is to be as open as any other new file.
    partial.touch()
    mode = partial.stat().st_mode
    partial.unlink()
    try:
        yield partial
        if partial.exists():
            partial.chmod(mode)
            partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(
    output: Path, *, replace: bool = False, shared: bool = False, publishes: bool = True
) -> Iterator[Path]:
    """Lends a folder of the same name inside a temporary folder beside the real one. If nothing failed, everything in
    it is forced to the disk and it is moved to its place; otherwise it is deleted.

    Args:
        output: The folder. Without `replace`, one that is there already must be empty.
        replace: Whether an old folder of this name makes room. Until the new one is in its place, the old one is there
            under its own name or under one that ends in `REPLACED`.
        shared: Whether several processes write into the folder. They use the same temporary folder then; what a killed
            process left in it is the caller's to delete (`delete_unfinished`).
        publishes: Whether it is this process, of those that share the folder, that moves it to its place. The others
            must have left off writing by then.

    Raises:
        WriteError: It could not be written, because the disk is full for example.
    """
    parent, staging = output.absolute().parent, None
    try:
        if shared:
            staging = parent / f"{UNFINISHED}{output.name}"
            staging.mkdir(parents=True, exist_ok=True)
        else:
            # A name that nobody can foresee: what is deleted in the end is what was made here.
            staging = Path(tempfile.mkdtemp(prefix=f"{UNFINISHED}{output.name}.", dir=parent))
        folder = staging / output.name
        folder.mkdir(exist_ok=shared)
        yield folder
        if publishes:
            _publish(folder, output, replace)
            shutil.rmtree(staging, ignore_errors=True)
    except BaseException as error:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
        # torch reports a full disk as a RuntimeError, safetensors as an error of its own.
        if isinstance(error, (OSError, RuntimeError, SafetensorError)):
            raise WriteError(f"{str(output)!r} could not be written: {error}. Nothing was left behind.") from error
        raise


def _publish(folder: Path, output: Path, replace: bool) -> None:
    """Forces a folder to the disk and moves it to its place."""
    mode = folder.stat().st_mode & 0o666
    for path in (*folder.rglob("*"), folder):
        if path.is_file():
            # safetensors makes files that only their owner may read.
            path.chmod(mode)
        force_to_disk(path)
    replaced = output.with_name(output.name + REPLACED)
    if replace and output.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        output.rename(replaced)
    # Without `replace`, a file or folder that came meanwhile stops it; an empty folder is as good as none.
    folder.rename(output)
    # The folder is there and whole; some file systems cannot force a folder's names to the disk.
    with suppress(OSError):
        force_to_disk(output.absolute().parent)
    if replace:
        shutil.rmtree(replaced, ignore_errors=True)


def delete_unfinished(parent: Path) -> None:
    """Deletes the temporary folders that killed processes left in a folder."""
    for folder in parent.glob(f"{UNFINISHED}*"):
        shutil.rmtree(folder, ignore_errors=True)


def force_to_disk(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk itself.

    Raises:
        OSError: The disk failed, or the file system cannot do it for a folder.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
