"""Files that are there whole or not at all."""

from pathlib import Path

import pytest

from swinv2.disk import force_to_disk, whole_file


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
