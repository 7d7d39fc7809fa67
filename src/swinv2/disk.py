"""Files and folders that are written atomically.

In: the path of a file or a folder. Out: the complete file or folder, or none. This module knows no format.
"""

import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from swinv2.errors import UsageError

UNFINISHED = ".unfinished-"
"""Prefix of the names of temporary folders."""

REPLACED = "-replaced"
"""Suffix of the name of a folder while a new one replaces it."""


class WriteError(UsageError):
    """A file or a folder could not be written."""


@contextmanager
def whole_file(output: Path, alone: bool = False) -> Iterator[Path]:
    """Yields a temporary path in the same folder; if no error occurs, the file written there gets the real name.

    Args:
        output: The file. An existing file is replaced, unless nothing was written.
        alone: Whether no other process writes this file at the same time. The temporary name is then fixed, so that
            the next process overwrites the temporary file of a killed one. Otherwise it has the names of the machine
            and of the process, see `delete_abandoned`.

    Raises:
        WriteError: There is something else of that name, such as a folder or a device.
    """
    if output.exists() and not output.is_file():
        raise WriteError(f"{str(output)!r} is not a regular file; give the name of a new file.")
    writer = "" if alone else f".{_machine()}.{os.getpid()}"
    partial = output.with_name(f".{output.name}{writer}.part")
    partial.unlink(missing_ok=True)
    # safetensors creates files that only the owner can read; the result gets the permissions of any new file.
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


def delete_abandoned(folder: Path) -> None:
    """Deletes the temporary files that killed processes of this machine left in a folder (`whole_file`)."""
    pattern = re.compile(rf"\..+\.{re.escape(_machine())}\.([0-9]+)\.part")
    for name in os.listdir(folder):
        found = pattern.fullmatch(name)
        if found and not _is_running(int(found[1])):
            (folder / name).unlink(missing_ok=True)


def _machine() -> str:
    """The name of this machine, as a part of the name of a file."""
    return platform.node().replace("/", "_") or "machine"


def _is_running(process: int) -> bool:
    """Whether this machine has a process of this number; True if the system cannot be asked."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@contextmanager
def whole_folder(
    output: Path, *, replace: bool = False, shared: bool = False, publishes: bool = True
) -> Iterator[Path]:
    """Yields a folder of the same name inside a temporary folder. If no error occurs, all its files are flushed to the
    disk and it is moved to `output`; otherwise it is deleted.

    Args:
        output: The folder. Without `replace`, an existing folder must be empty.
        replace: Whether to replace an existing folder. Until the new folder is moved, the old one exists under its own
            name or with the suffix `REPLACED`.
        shared: Whether several processes write into the folder. They then use the same temporary folder; the caller
            deletes the files of killed processes (`delete_unfinished`).
        publishes: Whether this process moves the folder. The other processes that share it must have finished writing.

    Raises:
        WriteError: Writing failed, for example because the disk is full.
    """
    parent, staging = output.absolute().parent, None
    try:
        if shared:
            staging = parent / f"{UNFINISHED}{output.name}"
            staging.mkdir(parents=True, exist_ok=True)
        else:
            # A random name: only the folder made here is deleted at the end.
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
        # torch reports a full disk as RuntimeError, safetensors as SafetensorError.
        if isinstance(error, (OSError, RuntimeError, SafetensorError)):
            raise WriteError(f"{str(output)!r} could not be written: {error}. Nothing was left behind.") from error
        raise


def refuse_taken(output: Path) -> None:
    """Checks that a new folder can be written, before any work is done for it.

    Raises:
        WriteError: There is a file or a folder with files of that name, or no folder that it would be in.
    """
    if output.is_dir() and any(output.iterdir()):
        raise WriteError(f"the folder {str(output)!r} is not empty; give the name of a new folder.")
    if output.exists() and not output.is_dir():
        raise WriteError(f"{str(output)!r} is a file; give the name of a new folder.")
    if not output.absolute().parent.is_dir():
        raise WriteError(f"there is no folder {str(output.absolute().parent)!r} for {output.name!r}; make it first.")


def _publish(folder: Path, output: Path, replace: bool) -> None:
    """Flushes a folder to the disk and moves it to `output`."""
    mode = folder.stat().st_mode & 0o666
    for path in (*folder.rglob("*"), folder):
        if path.is_file():
            # safetensors creates files that only the owner can read.
            path.chmod(mode)
        force_to_disk(path)
    replaced = output.with_name(output.name + REPLACED)
    if replace and output.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        output.rename(replaced)
    # Without `replace`, this fails if a file or a non-empty folder has appeared in the meantime.
    folder.rename(output)
    # The folder is complete; some file systems cannot flush the names in a folder.
    with suppress(OSError):
        force_to_disk(output.absolute().parent)
    if replace:
        shutil.rmtree(replaced, ignore_errors=True)


def delete_unfinished(parent: Path) -> None:
    """Deletes the temporary folders of killed processes in a folder."""
    for folder in parent.glob(f"{UNFINISHED}*"):
        shutil.rmtree(folder, ignore_errors=True)


def force_to_disk(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk.

    Raises:
        OSError: The disk failed, or the file system cannot flush folders.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def unique_name(path: Path, taken: set[str]) -> str:
    """The file's name without its suffix; with a number if an earlier image of another folder or suffix had it.

    Args:
        path: The image.
        taken: The names so far, without regard to capitals; the new one is added.

    Example:

        >>> taken = set()
        >>> [unique_name(Path(name), taken) for name in ("a/dog.png", "b/dog.png", "a/Dog.jpg")]
        ['dog', 'dog-2', 'Dog-3']
    """
    name, number = path.stem, 2
    while name.casefold() in taken:
        name, number = f"{path.stem}-{number}", number + 1
    taken.add(name.casefold())
    return name
