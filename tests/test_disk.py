"""Files and folders that are there whole or not at all."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

from swinv2.disk import (
    UNFINISHED,
    WriteError,
    delete_abandoned,
    delete_unfinished,
    force_to_disk,
    unique_name,
    whole_file,
    whole_folder,
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of an earlier time."""
    path = tmp_path / "file"
    path.write_text("old")
    return path


def test_the_new_file_takes_the_place_of_the_old_one(file: Path) -> None:
    with whole_file(file) as partial:
        partial.write_text("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new"
    assert list(file.parent.iterdir()) == [file]


def test_it_is_as_open_as_any_new_file(file: Path) -> None:
    """Whatever the mode in which it was written."""
    with whole_file(file.with_name("new")) as partial:
        partial.touch(0o600)
    assert file.with_name("new").stat().st_mode == file.stat().st_mode


def test_what_fails_on_the_way_leaves_the_old_one(file: Path) -> None:
    def write_half() -> None:
        with whole_file(file) as partial:
            partial.write_text("half of it")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert file.read_text() == "old"
    assert list(file.parent.iterdir()) == [file]


def test_what_a_killed_process_left_is_gone_with_the_next_write(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one process writes a file alone; otherwise each has a temporary name of its own."""
    with whole_file(file, alone=True) as left, whole_file(file) as another:
        pass
    left.write_text("half of it")
    monkeypatch.setattr("os.getpid", lambda: 0)
    with whole_file(file) as partial:
        assert partial not in (left, another)
    with whole_file(file, alone=True) as partial:
        assert partial == left
        assert not partial.exists()
        partial.write_text("new")
    assert file.read_text() == "new"
    assert list(file.parent.iterdir()) == [file]


def test_what_killed_processes_left_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of this machine, and not that of processes that run."""
    kept = ["file", ".file.part", ".other.part"]
    with whole_file(tmp_path / "a") as running:
        running.touch()
        ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
        left = running.with_name(running.name.replace(f".{os.getpid()}.", f".{int(ended.stdout)}."))
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr("platform.node", lambda: "another.machine")
            with whole_file(tmp_path / "a") as other:
                kept.append(other.name.replace(f".{os.getpid()}.", f".{int(ended.stdout)}."))
        for name in [left.name, *kept]:
            (tmp_path / name).touch()
        delete_abandoned(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {running.name, *kept}
    assert (tmp_path / "a").exists()


def test_nothing_written_changes_nothing(file: Path) -> None:
    with whole_file(file):
        pass
    assert file.read_text() == "old"
    assert list(file.parent.iterdir()) == [file]


def test_what_is_not_there_cannot_be_forced_to_the_disk(file: Path) -> None:
    force_to_disk(file)
    force_to_disk(file.parent)
    with pytest.raises(FileNotFoundError):
        force_to_disk(file.with_name("gone"))


class TestWholeFolder:
    def test_it_is_there_in_the_end_and_as_open_as_any_other(self, tmp_path: Path) -> None:
        with whole_folder(tmp_path / "out") as folder:
            (folder / "deep").mkdir()
            (folder / "deep" / "file").touch(0o600)
            assert not (tmp_path / "out").exists()
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        (tmp_path / "usual").mkdir()
        (tmp_path / "file").touch()
        assert (tmp_path / "out").stat().st_mode == (tmp_path / "usual").stat().st_mode
        assert (tmp_path / "out/deep/file").stat().st_mode == (tmp_path / "file").stat().st_mode

    def test_every_file_and_folder_is_forced_to_the_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        plain, forced = os.fsync, []
        monkeypatch.setattr(os, "fsync", lambda handle: (forced.append(os.fstat(handle).st_ino), plain(handle)))
        with whole_folder(tmp_path / "out") as folder:
            (folder / "deep").mkdir()
            (folder / "deep" / "file").touch()
        assert sorted(forced) == sorted(path.stat().st_ino for path in [tmp_path, *tmp_path.rglob("*")])

    @pytest.mark.parametrize("shared", [False, True])
    @pytest.mark.parametrize(
        "error",
        [OSError(28, "No space"), RuntimeError("write failed"), SafetensorError("IoError"), KeyboardInterrupt("now")],
    )
    def test_what_fails_on_the_way_leaves_nothing(self, tmp_path: Path, error: BaseException, shared: bool) -> None:
        def fail() -> None:
            with whole_folder(tmp_path / "out", shared=shared) as folder:
                (folder / "half").touch()
                raise error

        expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else WriteError
        with pytest.raises(expected, match=re.escape(str(error))):
            fail()
        assert not list(tmp_path.iterdir())

    def test_a_place_that_is_none(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(WriteError, match=r"out' could not be written"), whole_folder(tmp_path / "file" / "out"):
            pass

    def test_what_came_meanwhile_is_kept(self, tmp_path: Path) -> None:
        def write() -> None:
            with whole_folder(tmp_path / "out"):
                (tmp_path / "out").mkdir()
                (tmp_path / "out" / "theirs").touch()

        with pytest.raises(WriteError, match="could not be written"):
            write()
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["theirs"]

    def test_an_old_one_is_replaced_only_if_that_is_wanted(self, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "old").touch()
        with whole_folder(tmp_path / "out", replace=True) as folder:
            (folder / "new").touch()
            assert (tmp_path / "out" / "old").exists()
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["new"]
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_a_folder_of_somebody_else_is_not_deleted(self, tmp_path: Path) -> None:
        theirs = tmp_path / f"{UNFINISHED}out"
        theirs.mkdir()
        with whole_folder(tmp_path / "out"):
            pass
        assert theirs.exists()
        delete_unfinished(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_a_file_system_that_cannot_force_names_to_the_disk(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The folder is whole and has its name then: no failure."""

        def refuse(place: Path) -> None:
            if place == tmp_path:
                raise OSError(22, "Invalid argument")

        monkeypatch.setattr("swinv2.disk.force_to_disk", refuse)
        with whole_folder(tmp_path / "out") as folder:
            (folder / "file").touch()
        assert (tmp_path / "out" / "file").exists()


def test_what_is_no_regular_file_is_never_replaced(tmp_path: Path) -> None:
    """A device, of which there may be one on the machine, or a folder."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(WriteError, match="is not a regular file"), whole_file(path) as partial:
            partial.write_text("new")
    assert (tmp_path / "pipe").is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_a_name_is_given_once() -> None:
    taken: set[str] = set()
    given = [unique_name(Path(name), taken) for name in ("dog-2.png", "a/dog.png", "b/dog.png", "b/dog.jpg", "DOG.png")]
    assert given == ["dog-2", "dog", "dog-3", "dog-4", "DOG-5"]
