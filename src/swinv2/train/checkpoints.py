"""Checkpoints of a run that are whole or not there.

In: folders that a trainer wrote. Out: sealed folders, and the newest one that is sound. A checkpoint is written beside
its place, sealed with the size and digest of every file, forced to the disk and only then moved to its place; older
ones are deleted after that. Whatever kills the process, at any moment, leaves the last sealed checkpoint. This module
knows no model and no trainer.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from swinv2.errors import UsageError

MANIFEST = "manifest.json"
STAGING = ".unfinished-"
"""How the names of unfinished checkpoints begin."""


class SaveError(UsageError):
    """A checkpoint could not be written."""


def seal(folder: Path) -> None:
    """Writes down the size and digest of every file and forces all of them to the disk.

    Args:
        folder: The checkpoint.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    digests = {str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": _digest(path)} for path in files}
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps(digests, indent=2))
    for path in [*files, manifest, *{path.parent for path in files}, folder]:
        _force_to_disk(path)


def why_unusable(folder: Path) -> str | None:
    """Says what is wrong with a sealed folder; None if it is as it was sealed.

    Files that came later do not matter.
    """
    try:
        expected: dict[str, dict[str, int | str]] = json.loads((folder / MANIFEST).read_text())
        for name, was in expected.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != was["bytes"]:
                return f"{name} has {path.stat().st_size} bytes, and had {was['bytes']}"
            if _digest(path) != was["sha256"]:
                return f"{name} has changed"
    except FileNotFoundError:
        return f"{MANIFEST} is missing: it was not written to its end, or not by this package"
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return f"{MANIFEST} cannot be read: {error}"
    return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _force_to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, by their step, the newest first."""
    found = [(path, re.fullmatch(r"checkpoint-(\d+)", path.name)) for path in run.glob("checkpoint-*")]
    numbered = [(int(match[1]), path) for path, match in found if match and path.is_dir()]
    return [path for _, path in sorted(numbered, reverse=True)]


def newest_sound(run: Path) -> tuple[Path | None, list[tuple[Path, str]]]:
    """Finds where a run can go on.

    Args:
        run: Folder of the run.

    Returns:
        The newest sound checkpoint, if there is one, and the newer ones that are not, each with the reason.
    """
    unusable: list[tuple[Path, str]] = []
    for folder in checkpoints(run):
        reason = why_unusable(folder)
        if reason is None:
            return folder, unusable
        unusable.append((folder, reason))
    return None, unusable


def clear_unfinished(run: Path) -> None:
    """Deletes what a killed process left."""
    for folder in run.glob(f"{STAGING}*"):
        shutil.rmtree(folder)


@contextmanager
def staged(final: Path) -> Iterator[Path]:
    """Gives a folder to write a checkpoint into, and deletes it if writing fails.

    Args:
        final: Where the checkpoint will be, after `publish`.

    Yields:
        The folder to write into.

    Raises:
        SaveError: Writing failed, because the disk is full for example.
    """
    staging = final.with_name(STAGING + final.name)
    try:
        staging.mkdir(parents=True, exist_ok=True)
        yield staging
    # torch reports a full disk as a RuntimeError, safetensors as an error of its own.
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(staging, ignore_errors=True)
        good, _ = newest_sound(final.parent)
        kept = f"{good} is complete" if good else "there is no earlier one"
        raise SaveError(
            f"the checkpoint {final} could not be written: {error}. {kept[0].upper()}{kept[1:]}. Make room and run the "
            "same command with --resume."
        ) from error


def publish(staging: Path, final: Path) -> None:
    """Seals a checkpoint and moves it to its place, that of an older one of the same name included."""
    seal(staging)
    older = final.with_name(f"{STAGING}older-{final.name}")
    if final.exists():
        final.rename(older)
    staging.rename(final)
    _force_to_disk(final.parent)
    shutil.rmtree(older, ignore_errors=True)


def prune(run: Path, keep: int | None, protected: Iterable[Path] = ()) -> None:
    """Deletes the oldest checkpoints.

    Args:
        run: Folder of the run.
        keep: How many stay; None for all.
        protected: Checkpoints that stay whatever their age; they count among those that stay.
    """
    if keep is None or keep < 1:
        return
    present = checkpoints(run)
    staying = {path for path in present if path in set(protected)} | set(present[:1])
    for path in present:
        if len(staying) < keep:
            staying.add(path)
    for path in present:
        if path not in staying:
            # Under another name first: half of a checkpoint must not pass for one.
            doomed = path.with_name(STAGING + path.name)
            path.rename(doomed)
            shutil.rmtree(doomed)
