"""The folder of a run: files appear when they are complete, and in no other way."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from swinv2.disk import WriteError
from swinv2.errors import UsageError
from swinv2.shards.output import Output


@pytest.fixture(params=["folder", "store"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Output:
    found = Output(str(tmp_path / "out") if request.param == "folder" else f"memory://{tmp_path.name}/out")
    found.prepare("shards")
    return found


def test_a_file_appears_when_it_is_complete(output: Output) -> None:
    with output.publish("shards/a") as path:
        path.write_bytes(b"abc")
        assert output.names("shards") <= {path.name}
        assert output.read("shards/a") is None
    assert output.read("shards/a") == b"abc"
    assert output.names("shards") == {"a"}


def test_an_error_leaves_what_was_there(output: Output) -> None:
    def fail() -> None:
        with output.publish("shards/a") as path:
            path.write_bytes(b"half of it")
            raise KeyboardInterrupt

    for before in (None, b"old"):
        if before is not None:
            with output.publish("shards/a") as path:
                path.write_bytes(before)
        with pytest.raises(KeyboardInterrupt):
            fail()
        assert output.read("shards/a") == before


def test_what_a_killed_process_left_is_deleted(tmp_path: Path) -> None:
    output = Output(str(tmp_path / "out"))
    output.prepare("shards")
    script = (
        "import os, signal, sys\n"
        "from swinv2.shards.output import Output\n"
        "with Output(sys.argv[1]).publish('shards/a') as path:\n"
        "    path.write_bytes(b'half of it')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script, output.place], check=False)
    with output.publish("shards/b") as mine:
        mine.write_bytes(b"b")
        assert len(output.names("shards")) == 2
        output.prepare("shards")
        # Not that of a process that runs.
        assert output.names("shards") == {mine.name}
    assert output.names("shards") == {"b"}


def test_a_file_that_another_process_deleted_is_an_error(tmp_path: Path) -> None:
    output = Output(str(tmp_path))

    def write() -> None:
        with output.publish("a") as path:
            path.write_bytes(b"abc")
            held = path.open("rb")
            path.unlink()
            held.close()
            path.touch()
            os.unlink(path)

    with pytest.raises((WriteError, FileNotFoundError)):
        write()
    assert output.read("a") is None


@pytest.mark.parametrize(
    ("place", "message"),
    [("ftp://host/out", "ftp:// may show files before"), ("hf://datasets/a/b", "hf:// may show files before")],
)
def test_a_store_that_is_not_atomic(place: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Output(place)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UsageError, match="is a file; expected a folder"):
        Output(str(tmp_path / "out")).prepare("shards")
