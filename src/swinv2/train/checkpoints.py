"""Checkpoints of a run that are whole or not there.

In: folders that a trainer wrote. Out: sealed folders, and the newest one that is sound. A checkpoint is written beside
its place, sealed with the size and digest of every file, forced to the disk and only then moved to its place; older
ones are deleted after that. Whatever kills the process, at any moment, leaves the last sealed checkpoint. This module
knows no model and no trainer.
"""

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from swinv2.disk import force_to_disk
from swinv2.errors import UsageError

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
STAGING = ".unfinished-"
"""How the names of unfinished checkpoints begin."""
OLDER = "-older"
"""How the name of a sound checkpoint ends while another one takes its place."""


class SaveError(UsageError):
    """A checkpoint could not be written."""


def seal(folder: Path) -> None:
    """Writes down the size and digest of every file and forces all of them to the disk.

    Args:
        folder: The checkpoint.
    """
    manifest = folder / MANIFEST
    inside = sorted(folder.rglob("*"))
    files = [path for path in inside if path.is_file() and path != manifest]
    digests = {str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": _digest(path)} for path in files}
    manifest.write_text(json.dumps(digests, indent=2))
    for path in [*files, manifest, *(path for path in inside if path.is_dir()), folder]:
        force_to_disk(path)


def why_unusable(folder: Path) -> str | None:
    """Says what is wrong with a sealed folder; None if it is as it was sealed.

    Files that came later do not matter.
    """
    try:
        expected: dict[str, dict[str, int | str]] = json.loads((folder / MANIFEST).read_text())
        if not expected:
            return f"{MANIFEST} lists no file"
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


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, by their step, the newest first.

    One that `publish` was killed while replacing comes after that which was to replace it.
    """
    found = [(path, re.fullmatch(rf"checkpoint-(\d+)({OLDER})?", path.name)) for path in run.glob("checkpoint-*")]
    numbered = [(int(match[1]), match[2] is None, path) for path, match in found if match and path.is_dir()]
    return [path for *_, path in sorted(numbered, reverse=True)]


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


def where_to_go_on(run: Path, wanted: str | None, resume: bool) -> Path | None:
    """Finds the checkpoint from which a run goes on.

    Args:
        run: Folder of the run.
        wanted: The checkpoint that was asked for, if one was.
        resume: Whether to go on from the newest sound one.

    Returns:
        The checkpoint; None to begin.

    Raises:
        UsageError: The wanted one is not sound, none is, or there are some and nobody said what to do with them.
    """
    if wanted:
        reason = why_unusable(Path(wanted)) if Path(wanted).is_dir() else "there is no such folder"
        if reason is not None:
            raise UsageError(f"--resume_from_checkpoint {wanted}: {reason}. --resume finds the newest sound one.")
        return Path(wanted)
    if not resume:
        if checkpoints(run):
            raise UsageError(
                f"{run} holds checkpoints of an earlier run; add --resume to go on from the newest, or give another "
                "--output_dir."
            )
        return None
    good, unusable = newest_sound(run)
    for folder, reason in unusable:
        logger.warning(f"{folder} is not used: {reason}")
    if good is None and unusable:
        raise UsageError(f"no checkpoint of {run} is sound; delete them to begin anew.")
    return good


def clear_unfinished(run: Path) -> None:
    """Deletes what a killed process left."""
    for folder in run.glob(f"{STAGING}*"):
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def staged(final: Path) -> Iterator[Path]:
    """Gives a folder to write a checkpoint into, and deletes it if writing fails or is interrupted.

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
        kept = f"{good} is complete" if good else "There is no earlier one"
        raise SaveError(
            f"{final} could not be written: {error}. {kept}. If the disk is full, make room; then run the same command "
            "with --resume."
        ) from error
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def publish(staging: Path, final: Path) -> None:
    """Seals a checkpoint and moves it to its place, that of an older one of the same name included."""
    seal(staging)
    older = final.with_name(final.name + OLDER)
    if final.exists():
        # A sound one stays one that `newest_sound` finds until the new one is in its place.
        if why_unusable(final) is None:
            _delete(older)
            final.rename(older)
        else:
            _delete(final)
    staging.rename(final)
    force_to_disk(final.parent)
    _delete(older)


def _delete(folder: Path) -> None:
    """Deletes a folder under another name: half of a checkpoint must not pass for one.

    What cannot be deleted now, `clear_unfinished` tries again.
    """
    if not folder.exists():
        return
    doomed = folder.with_name(f"{STAGING}deleted-{folder.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def prune(run: Path, keep: int | None, protected: Iterable[Path] = ()) -> None:
    """Deletes the oldest checkpoints, but never the one of the highest step and the one that was sealed last.

    These are two if the run went back: because later checkpoints are not sound, or because it was told to.

    Args:
        run: Folder of the run.
        keep: How many stay; None for all.
        protected: Checkpoints that stay whatever their age, known by their names since a run may have been moved; they
            count among those that stay.
    """
    if keep is None or keep < 1:
        return
    present, names = checkpoints(run), {path.name for path in protected}
    staying = {path for path in present if path.name in names} | set(present[:1])
    if present:
        staying.add(max(present, key=_sealed_at))
    for path in present:
        if len(staying) < keep:
            staying.add(path)
    for path in reversed(present):
        if path not in staying:
            _delete(path)


def _sealed_at(folder: Path) -> int:
    manifest = folder / MANIFEST
    return manifest.stat().st_mtime_ns if manifest.is_file() else 0
