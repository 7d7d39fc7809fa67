"""Checkpoints of a run, written atomically.

In: folders that a trainer writes. Out: sealed folders, and the newest valid one. A seal has the size of every file; it
is written before `disk.whole_folder` moves the checkpoint to its final path. Older checkpoints are deleted afterwards.
If the process is killed, at any moment, the last sealed checkpoint remains. This module knows no model and no trainer.
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
    """Yields a folder for a new checkpoint; see `disk.whole_folder`. If this process `publishes` it, it also seals it.

    Raises:
        SaveError: Writing failed, for example because the disk is full.
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
    """Writes the sizes of all files of a checkpoint into its manifest."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / MANIFEST]
    sizes = {str(path.relative_to(folder)): {"bytes": path.stat().st_size} for path in files}
    (folder / MANIFEST).write_text(json.dumps(sizes, indent=2))


def why_unusable(folder: Path) -> str | None:
    """The reason why a checkpoint is not valid; None if every file in its manifest has its size of the sealing.

    Files added after the sealing are ignored.
    """
    try:
        expected: dict[str, dict[str, int]] = json.loads((folder / MANIFEST).read_text())
        if not expected:
            return f"{MANIFEST} lists no files"
        for name, was in expected.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != was["bytes"]:
                return f"{name} has {path.stat().st_size} bytes instead of {was['bytes']}"
    except FileNotFoundError:
        return f"{MANIFEST} is missing: the checkpoint is incomplete, or another program wrote it"
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return f"{MANIFEST} cannot be read: {error}"
    return None


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, sorted by step, the newest first.

    If the process was killed while it replaced a checkpoint, the new one comes before the old one.
    """
    found = [(path, re.fullmatch(rf"checkpoint-(\d+)({REPLACED})?", path.name)) for path in run.glob("checkpoint-*")]
    numbered = [(int(match[1]), match[2] is None, path) for path, match in found if match and path.is_dir()]
    return [path for *_, path in sorted(numbered, reverse=True)]


def newest_valid(run: Path) -> tuple[Path | None, list[tuple[Path, str]]]:
    """Finds the newest valid checkpoint of a run, or None, and the newer invalid ones, each with the reason."""
    unusable: list[tuple[Path, str]] = []
    for folder in checkpoints(run):
        reason = why_unusable(folder)
        if reason is None:
            return folder, unusable
        unusable.append((folder, reason))
    return None, unusable


def checkpoint_to_resume(run: Path, wanted: str | None, resume: bool) -> Path | None:
    """Finds the checkpoint from which a run resumes; None to begin a new run.

    Args:
        run: Folder of the run.
        wanted: The checkpoint that the user named, if any.
        resume: Whether to resume from the newest valid checkpoint.

    Raises:
        UsageError: The named checkpoint is not valid; no checkpoint is valid; or checkpoints exist and the user neither
            named one nor set `resume`.
    """
    if wanted:
        reason = why_unusable(Path(wanted)) if Path(wanted).is_dir() else "there is no such folder"
        if reason is not None:
            raise UsageError(f"--resume-from-checkpoint {wanted}: {reason}. --resume finds the newest valid one.")
        return Path(wanted)
    if not resume:
        if checkpoints(run):
            raise UsageError(
                f"{run} has checkpoints of an earlier run; add --resume to resume from the newest, or give another "
                "--output-dir."
            )
        return None
    good, unusable = newest_valid(run)
    for folder, reason in unusable:
        logger.warning(f"{folder} is not used: {reason}")
    if good is None and unusable:
        raise UsageError(f"no checkpoint of {run} is valid; delete them to begin again.")
    return good


def prune(run: Path, keep: int | None, best: str | None) -> None:
    """Deletes the oldest checkpoints, but never the last one and the best one.

    If the process is killed during the deletion, files of the manifest are missing, so the rest is not valid. All are
    kept if `keep` is None. Of the path of the best one only the name counts, because the run may have been moved.
    """
    # By time, not by step: a run that resumes from an older checkpoint saves lower steps than those already there.
    rotate_checkpoints(str(run), keep, best and str(run / Path(best).name), use_mtime=True)
