"""Checkpoints of a run, written atomically.

In: folders that a trainer writes. Out: sealed folders, and the newest one that is valid. A checkpoint is sealed with
the size of every file before `disk.whole_folder` moves it to its place; older ones are deleted after that. Whatever
kills the process, at any moment, leaves the last sealed checkpoint. This module knows no model and no trainer.
"""

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers.trainer_utils import rotate_checkpoints

from swinv2.disk import REPLACED, WriteError, whole_folder
from swinv2.errors import UsageError

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"


class SaveError(UsageError):
    """A checkpoint could not be written."""


@contextmanager
def whole_checkpoint(final: Path, publishes: bool) -> Iterator[Path]:
    """Lends a folder to write a checkpoint into; see `disk.whole_folder`.

    Args:
        final: Where the checkpoint will be.
        publishes: Whether this process seals it and moves it to its place, when all of them have written.

    Raises:
        SaveError: Writing failed, because the disk is full for example.
    """
    try:
        with whole_folder(final, replace=True, shared=True, publishes=publishes) as folder:
            yield folder
            if publishes:
                seal(folder)
    except WriteError as error:
        good, _ = newest_valid(final.parent)
        kept = f"{good} is complete" if good else "There is no earlier one"
        raise SaveError(
            f"{error} {kept}. If the disk is full, make room; then run the same command with --resume."
        ) from error


def seal(folder: Path) -> None:
    """Writes down the size of every file.

    Args:
        folder: The checkpoint.
    """
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / MANIFEST]
    sizes = {str(path.relative_to(folder)): {"bytes": path.stat().st_size} for path in files}
    (folder / MANIFEST).write_text(json.dumps(sizes, indent=2))


def why_unusable(folder: Path) -> str | None:
    """Says what is wrong with a sealed folder; None if its files are as long as when it was sealed.

    Files that came later do not matter.
    """
    try:
        expected: dict[str, dict[str, int]] = json.loads((folder / MANIFEST).read_text())
        if not expected:
            return f"{MANIFEST} lists no file"
        for name, was in expected.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != was["bytes"]:
                return f"{name} has {path.stat().st_size} bytes, and had {was['bytes']}"
    except FileNotFoundError:
        return f"{MANIFEST} is missing: it was not written to its end, or not by this package"
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return f"{MANIFEST} cannot be read: {error}"
    return None


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, by their step, the newest first.

    One that was being replaced when the process was killed comes after the one that was to replace it.
    """
    found = [(path, re.fullmatch(rf"checkpoint-(\d+)({REPLACED})?", path.name)) for path in run.glob("checkpoint-*")]
    numbered = [(int(match[1]), match[2] is None, path) for path, match in found if match and path.is_dir()]
    return [path for *_, path in sorted(numbered, reverse=True)]


def newest_valid(run: Path) -> tuple[Path | None, list[tuple[Path, str]]]:
    """Finds where a run can resume.

    Args:
        run: Folder of the run.

    Returns:
        The newest valid checkpoint, if there is one, and the newer ones that are not, each with the reason.
    """
    unusable: list[tuple[Path, str]] = []
    for folder in checkpoints(run):
        reason = why_unusable(folder)
        if reason is None:
            return folder, unusable
        unusable.append((folder, reason))
    return None, unusable


def checkpoint_to_resume(run: Path, wanted: str | None, resume: bool) -> Path | None:
    """Finds the checkpoint from which a run resumes.

    Args:
        run: Folder of the run.
        wanted: The checkpoint that was asked for, if one was.
        resume: Whether to resume from the newest valid one.

    Returns:
        The checkpoint; None to begin.

    Raises:
        UsageError: The wanted one is not valid, none is, or there are some and nobody said what to do with them.
    """
    if wanted:
        reason = why_unusable(Path(wanted)) if Path(wanted).is_dir() else "there is no such folder"
        if reason is not None:
            raise UsageError(f"--resume-from-checkpoint {wanted}: {reason}. --resume finds the newest valid one.")
        return Path(wanted)
    if not resume:
        if checkpoints(run):
            raise UsageError(
                f"{run} holds checkpoints of an earlier run; add --resume to resume from the newest, or give another "
                "--output-dir."
            )
        return None
    good, unusable = newest_valid(run)
    for folder, reason in unusable:
        logger.warning(f"{folder} is not used: {reason}")
    if good is None and unusable:
        raise UsageError(f"no checkpoint of {run} is valid; delete them to begin anew.")
    return good


def prune(run: Path, keep: int | None, best: str | None) -> None:
    """Deletes those checkpoints that were saved first, but never the last one and the best one.

    Half of a checkpoint, which a killed process leaves, misses files of its manifest.

    Args:
        run: Folder of the run.
        keep: How many stay; None for all.
        best: The best one, known by its name since a run may have been moved.
    """
    # By time: a run that went back saves checkpoints of lower steps than those that it leaves behind.
    rotate_checkpoints(str(run), keep, best and str(run / Path(best).name), use_mtime=True)
