"""Checkpoints that are whole or not there, whatever kills the process and whenever."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swinv2.disk import UNFINISHED, delete_unfinished
from swinv2.errors import UsageError
from swinv2.train import checkpoints
from swinv2.train.checkpoints import (
    MANIFEST,
    SaveError,
    checkpoint_to_resume,
    newest_valid,
    prune,
    seal,
    whole_checkpoint,
    why_unusable,
)


class KilledError(BaseException):
    """Stands for the end of the process: nothing catches it."""


def write(folder: Path, content: str = "weights") -> Path:
    """Writes what a trainer would."""
    (folder / "deep" / "deeper").mkdir(parents=True, exist_ok=True)
    (folder / "model").write_text(content)
    (folder / "deep" / "deeper" / "state").write_bytes(b"\0" * 100)
    return folder


def save(run: Path, step: int, content: str = "weights") -> Path:
    """Saves a checkpoint as the trainer does."""
    final = run / f"checkpoint-{step}"
    with whole_checkpoint(final, publishes=True) as folder:
        write(folder, content)
    return final


def names(run: Path) -> list[str]:
    return [path.name for path in checkpoints.checkpoints(run)]


class TestSeal:
    def test_a_sealed_folder_is_usable_with_files_that_came_later(self, tmp_path: Path) -> None:
        folder = write(tmp_path / "checkpoint-1")
        assert (
            why_unusable(folder) == f"{MANIFEST} is missing: the checkpoint is incomplete, or another program wrote it"
        )
        seal(folder)
        (folder / "later").write_text("x")
        assert why_unusable(folder) is None
        assert set(json.loads((folder / MANIFEST).read_text())) == {"model", "deep/deeper/state"}

    def test_twice_is_as_good_as_once(self, tmp_path: Path) -> None:
        folder = write(tmp_path / "checkpoint-1")
        seal(folder)
        (folder / "model").write_text("other")
        seal(folder)
        assert why_unusable(folder) is None

    @pytest.mark.parametrize(
        ("damage", "reason"),
        [
            (lambda folder: (folder / "model").write_text("weight"), "model has 6 bytes instead of 7"),
            (lambda folder: (folder / "deep/deeper/state").unlink(), "deep/deeper/state is missing"),
            (lambda folder: (folder / MANIFEST).unlink(), f"{MANIFEST} is missing"),
            (lambda folder: (folder / MANIFEST).write_text('{"model"'), f"{MANIFEST} cannot be read"),
            (lambda folder: (folder / MANIFEST).write_bytes(b"\xff\xfe\0"), f"{MANIFEST} cannot be read"),
            (lambda folder: (folder / MANIFEST).write_text(""), f"{MANIFEST} cannot be read"),
            (lambda folder: (folder / MANIFEST).write_text("[1]"), f"{MANIFEST} cannot be read"),
            (lambda folder: (folder / MANIFEST).write_text('{"model": 7}'), f"{MANIFEST} cannot be read"),
            (
                lambda folder: (folder / MANIFEST).write_text('{"model": {"size": 7}}'),
                f"{MANIFEST} cannot be read",
            ),
            (lambda folder: (folder / MANIFEST).write_text("{}"), f"{MANIFEST} lists no file"),
        ],
    )
    def test_damage_is_named(self, tmp_path: Path, damage: Callable[[Path], Any], reason: str) -> None:
        folder = write(tmp_path / "checkpoint-1")
        seal(folder)
        damage(folder)
        assert reason in (why_unusable(folder) or "")


class TestNewest:
    def test_steps_are_numbers(self, tmp_path: Path) -> None:
        for step in (2, 10, 9):
            save(tmp_path, step)
        for other in ("checkpoint-x", "checkpoint-99-copy", "checkpoint-", f"{UNFINISHED}checkpoint-99"):
            write(tmp_path / other)
        (tmp_path / "checkpoint-100").write_text("a file")
        assert names(tmp_path) == ["checkpoint-10", "checkpoint-9", "checkpoint-2"]

    def test_it_falls_back_and_says_why(self, tmp_path: Path) -> None:
        good, changed, unsealed = save(tmp_path, 1), save(tmp_path, 2), write(tmp_path / "checkpoint-3")
        (changed / "model").write_text("cut")
        found, unusable = newest_valid(tmp_path)
        assert found == good
        assert [folder for folder, _ in unusable] == [unsealed, changed]
        assert unusable[1][1] == "model has 3 bytes instead of 7"

    def test_none(self, tmp_path: Path) -> None:
        assert newest_valid(tmp_path / "nowhere") == (None, [])
        broken = write(tmp_path / "checkpoint-3")
        found, unusable = newest_valid(tmp_path)
        assert found is None
        assert [folder for folder, _ in unusable] == [broken]


class TestWholeCheckpoint:
    def test_failure_leaves_nothing_and_says_which_one_is_left(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # A relative path, which must not be capitalised.
        monkeypatch.chdir(tmp_path)
        run = Path("run")
        save(run, 1)
        (save(run, 2) / "model").unlink()

        def fail() -> None:
            with whole_checkpoint(run / "checkpoint-3", publishes=True) as folder:
                write(folder)
                raise OSError(28, "No space left on device")

        with pytest.raises(SaveError, match=r"^'run/checkpoint-3' could .* run/checkpoint-1 is complete\. If the disk"):
            fail()
        assert sorted(path.name for path in run.iterdir()) == ["checkpoint-1", "checkpoint-2"]

    def test_the_first_one_fails(self, tmp_path: Path) -> None:
        with (
            pytest.raises(SaveError, match=r"There is no earlier one\."),
            whole_checkpoint(tmp_path / "run" / "checkpoint-3", publishes=True),
        ):
            raise OSError("full")
        assert not list((tmp_path / "run").iterdir())

    def test_several_processes_write_one(self, tmp_path: Path) -> None:
        final = tmp_path / "checkpoint-3"
        with whole_checkpoint(final, publishes=True) as folder:
            with whole_checkpoint(final, publishes=False) as same:
                (same / "shard-1").write_text("second")
            assert not final.exists()
            (folder / "shard-0").write_text("first")
        assert newest_valid(tmp_path) == (final, [])
        assert sorted(path.name for path in final.iterdir()) == [MANIFEST, "shard-0", "shard-1"]
        assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]

    @pytest.mark.parametrize("broken", [False, True])
    def test_over_an_older_one(self, tmp_path: Path, broken: bool) -> None:
        old = save(tmp_path, 1, "old")
        if broken:
            (old / "model").unlink()
        final = save(tmp_path, 1, "new")
        assert newest_valid(tmp_path) == (final, [])
        assert (final / "model").read_text() == "new"
        assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


class TestPrune:
    @pytest.mark.parametrize(
        ("keep", "best", "left"),
        [
            (None, None, [5, 4, 3, 2, 1]),
            (9, None, [5, 4, 3, 2, 1]),
            (3, None, [5, 4, 3]),
            (1, None, [5]),
            (1, 2, [5, 2]),
            (2, 2, [5, 2]),
            (3, 2, [5, 4, 2]),
            (2, 5, [5, 4]),
        ],
    )
    def test_the_oldest_go(self, tmp_path: Path, keep: int | None, best: int | None, left: list[int]) -> None:
        for step in range(1, 6):
            save(tmp_path, step)
        # Known after the run was moved.
        prune(tmp_path, keep, best and f"old-place/checkpoint-{best}")
        assert names(tmp_path) == [f"checkpoint-{step}" for step in left]
        assert len(list(tmp_path.iterdir())) == len(left)

    def test_the_checkpoints_that_a_run_went_back_behind_go_first(self, tmp_path: Path) -> None:
        """It went back to step 4, because what came later cannot be used."""
        for second, step in enumerate((4, 8, 12, 6)):
            final = save(tmp_path, step)
            if step > 6:
                (final / "model").unlink()
            os.utime(final, (1000 + second, 1000 + second))
        prune(tmp_path, 1, None)
        assert names(tmp_path) == ["checkpoint-6"]

    def test_an_empty_run(self, tmp_path: Path) -> None:
        prune(tmp_path, 1, None)
        assert names(tmp_path) == []


def kill_at(monkeypatch: pytest.MonkeyPatch, moment: int) -> Callable[[], bool]:
    """Ends the "process" at a moment: before or after a rename, before a sync, before, amid or after a deletion.

    Returns:
        Says whether it came to that.
    """
    count = 0

    def tick() -> None:
        nonlocal count
        count += 1
        if count > moment:
            # Dead: nothing more changes, whatever cleans up on the way out.
            raise KilledError

    plain_rename, plain_rmtree = Path.rename, shutil.rmtree

    def rename(self: Path, target: Path) -> Path:
        tick()
        result = plain_rename(self, target)
        tick()
        return result

    def fsync(handle: int) -> None:
        tick()

    def rmtree(path: str | Path, ignore_errors: bool = False) -> None:
        path = Path(path)
        tick()
        if path.exists():
            (path / MANIFEST).unlink(missing_ok=True)
            tick()
            (path / "model").unlink(missing_ok=True)
            tick()
        plain_rmtree(path, ignore_errors=ignore_errors)
        tick()

    monkeypatch.setattr(Path, "rename", rename)
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(shutil, "rmtree", rmtree)
    return lambda: count > moment


def until_it_survives(tmp_path: Path, prepare: Callable[[Path], None], act: Callable[[Path], None]) -> list[Path]:
    """Runs `act` and kills it at every moment there is.

    Returns:
        The run's folder after each kill, and in the end after none.
    """
    runs: list[Path] = []
    for moment in range(200):
        run = tmp_path / str(moment)
        prepare(run)
        runs.append(run)
        with pytest.MonkeyPatch.context() as patch:
            was_killed = kill_at(patch, moment)
            try:
                act(run)
            except KilledError:
                assert was_killed()
                continue
        return runs
    raise AssertionError("it never ends")


def content(run: Path) -> tuple[str, str]:
    good, _ = newest_valid(run)
    assert good is not None
    return good.name, (good / "model").read_text()


class TestKilled:
    def test_publishing_a_new_one(self, tmp_path: Path) -> None:
        runs = until_it_survives(tmp_path, lambda run: save(run, 1, "old") and None, lambda run: save(run, 2) and None)
        assert len(runs) > 8
        found = [content(run) for run in runs]
        assert set(found) == {("checkpoint-1", "old"), ("checkpoint-2", "weights")}
        # Once there, it stays.
        assert found == sorted(found)

    def test_publishing_over_one_that_is_the_only_one(self, tmp_path: Path) -> None:
        runs = until_it_survives(
            tmp_path, lambda run: save(run, 1, "old") and None, lambda run: save(run, 1, "new") and None
        )
        assert len(runs) > 12
        found = [content(run)[1] for run in runs]
        assert set(found) == {"old", "new"}
        assert found == sorted(found, reverse=True)
        for run in runs:
            before = content(run)
            delete_unfinished(run)
            assert content(run) == before
            # The run goes on, and comes to the same step again.
            save(run, 1, "newest")
            assert content(run) == ("checkpoint-1", "newest")
            assert [path.name for path in run.iterdir()] == ["checkpoint-1"]

    def test_twice_at_any_two_moments(self, tmp_path: Path) -> None:
        """The second attempt meets what the first left behind, whatever it was."""

        def again(run: Path) -> None:
            delete_unfinished(run)
            save(run, 1, "newest")

        first = until_it_survives(
            tmp_path / "first", lambda run: save(run, 1, "old") and None, lambda run: save(run, 1, "new") and None
        )
        for left in first:
            runs = until_it_survives(
                tmp_path / "second" / left.name, lambda run, left=left: shutil.copytree(left, run) and None, again
            )
            assert {content(run)[1] for run in runs} <= {content(left)[1], "newest"}
            assert content(runs[-1])[1] == "newest"

    def test_pruning(self, tmp_path: Path) -> None:
        def prepare(run: Path) -> None:
            for step in (1, 2, 3, 4):
                save(run, step, str(step))

        runs = until_it_survives(tmp_path, prepare, lambda run: prune(run, 2, "checkpoint-1"))
        assert len(runs) > 4
        for run in runs:
            # Half of a checkpoint does not pass for one.
            assert newest_valid(run) == (run / "checkpoint-4", [])
            halves = [name for name in names(run) if why_unusable(run / name)]
            assert len(halves) <= 1
            assert why_unusable(run / "checkpoint-1") is None
            prune(run, 2, "checkpoint-1")
            assert sorted(path.name for path in run.iterdir()) == ["checkpoint-1", "checkpoint-4"]

    def test_a_folder_that_cannot_be_deleted_does_not_stop_the_run(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for step in (1, 2, 3):
            save(tmp_path, step)
        plain = os.unlink
        monkeypatch.setattr(os, "unlink", lambda *args, **rest: (_ for _ in ()).throw(OSError(16, "busy")))
        prune(tmp_path, 1, None)
        monkeypatch.setattr(os, "unlink", plain)
        assert newest_valid(tmp_path)[0] == tmp_path / "checkpoint-3"
        prune(tmp_path, 1, None)
        assert names(tmp_path) == ["checkpoint-3"]


class TestWhereToGoOn:
    def test_the_newest_valid_one(self, tmp_path: Path) -> None:
        assert checkpoint_to_resume(tmp_path, None, resume=True) is None
        first, second = save(tmp_path, 1), save(tmp_path, 2)
        assert checkpoint_to_resume(tmp_path, None, resume=True) == second
        (second / "model").write_text("cut")
        assert checkpoint_to_resume(tmp_path, None, resume=True) == first

    def test_the_wanted_one(self, tmp_path: Path) -> None:
        first, second = save(tmp_path, 1), save(tmp_path, 2)
        assert checkpoint_to_resume(tmp_path, str(first), resume=False) == first
        (second / "model").unlink()
        with pytest.raises(UsageError, match=r"checkpoint-2: model is missing\. --resume finds"):
            checkpoint_to_resume(tmp_path, str(second), resume=True)
        with pytest.raises(UsageError, match="checkpoint-3: there is no such folder"):
            checkpoint_to_resume(tmp_path, str(tmp_path / "checkpoint-3"), resume=True)

    def test_none_is_valid(self, tmp_path: Path) -> None:
        (save(tmp_path, 1) / MANIFEST).unlink()
        with pytest.raises(UsageError, match=f"no checkpoint of {tmp_path} is valid; delete them"):
            checkpoint_to_resume(tmp_path, None, resume=True)

    def test_nobody_said_what_to_do(self, tmp_path: Path) -> None:
        assert checkpoint_to_resume(tmp_path, None, resume=False) is None
        save(tmp_path, 1)
        with pytest.raises(UsageError, match="add --resume"):
            checkpoint_to_resume(tmp_path, None, resume=False)
