"""Files that are on the disk whole or not at all.

In: a file's place, or what is to survive a power cut. Out: nothing but the file. This module knows no format.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
            os.replace(partial, output)
    finally:
        partial.unlink(missing_ok=True)


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
