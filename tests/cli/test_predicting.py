"""`swinv2 predict` as a user meets it."""

import importlib.util
import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from commands import swinv2_command
from shard_files import files_of, images_of, keys_of, read_answers, write_folder, write_tar
from swinv2.shards import run


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "photos", images_of(7))


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_labels_of_a_folder(model: Path, source: Path, tmp_path: Path) -> None:
    arguments = ["predict", source, "-o", tmp_path / "out", "-m", model, "--shard-size", 3, "--readers", 0]
    result = swinv2_command(*arguments)
    assert (result.exit_code, result.stdout) == (0, "")
    assert "7 images in 3 shards, " in result.stderr
    assert f"images/s: {tmp_path / 'out'}" in result.stderr
    assert keys_of(tmp_path / "out") == list(images_of(7))
    assert {len(row["labels"]) for row in read_answers(tmp_path / "out")} == {3}
    again = swinv2_command(*arguments)
    assert again.exit_code == 0
    assert "3 of 3 shards were done before; their errors are not counted again\n0 images in 0 shards: " in again.stderr


def test_json(model: Path, source: Path, tmp_path: Path) -> None:
    arguments = ["predict", source, "-o", tmp_path / "out", "-m", model, "--shard-size", 4, "--readers", 0, "--json"]
    first, second, end = lines_of(swinv2_command(*arguments).stdout)
    assert [(line["event"], line["done"], line["of"], line["images"]) for line in (first, second)] == [
        ("shard", 1, 2, 4),
        ("shard", 2, 2, 3),
    ]
    assert [name.rsplit(".", 2)[0] for name in files_of(tmp_path / "out")] == [first["shard"], second["shard"]]
    assert (end["event"], end["shards"], end["computed"], end["images"], end["errors"]) == ("end", 2, 2, 7, 0)
    assert end["failed"] == []
    assert end["images_per_second"] > 0
    (end,) = lines_of(swinv2_command(*arguments).stdout)
    assert (end["shards"], end["computed"], end["images"]) == (2, 0, 0)


def test_errors_are_named_and_counted(model: Path, tmp_path: Path) -> None:
    write_folder(tmp_path / "photos", images_of(9, broken=[1, 2, 4, 5]))
    cut = write_tar(tmp_path / "[red]cut.tar", images_of(4))
    cut.write_bytes(cut.read_bytes()[: 2 * 3_072 + 600])
    (tmp_path / "bad.tar").write_bytes(b"x")
    named = [tmp_path / name for name in ("photos", "[red]cut.tar", "bad.tar", "gone.tar")]
    result = swinv2_command("predict", *named, "-o", tmp_path / "out", "-m", model, "--readers", 0, "--json")
    assert result.exit_code == 1
    for line in (
        f"failed {tmp_path}/gone.tar: there is no such file or folder",
        f"errors {tmp_path}/photos: 4 of 9 images: 0001.png: not an image; 0002.png: not an image; "
        "0004.png: not an image ...",
        f"errors {tmp_path}/[red]cut.tar: damaged after 2 images: unexpected end of data",
        f"failed {tmp_path}/bad.tar: truncated header, so it is no tar archive",
        "images with an error instead of an answer: 4, damaged shards: 1, shards that could not be read: 2",
    ):
        assert line in result.stderr.splitlines()
    end = lines_of(result.stdout)[-1]
    assert (end["images"], end["errors"], end["damaged"]) == (11, 4, 1)
    assert [Path(failed["source"]).name for failed in end["failed"]] == ["gone.tar", "bad.tar"]


def test_many_errors_are_not_all_named(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "photos", images_of(6, broken=range(6)))
    for number in range(5):
        (tmp_path / f"{number}.tar").write_bytes(b"x")
    monkeypatch.setattr("swinv2.cli.predicting._MOST_NAMED", 2)
    named = [tmp_path / "photos", tmp_path / "{0..4}.tar"]
    result = swinv2_command("predict", *named, "-o", tmp_path / "out", "-m", model, "--readers", 0, "--shard-size", 1)
    assert result.exit_code == 1
    assert result.stderr.count("errors ") == 2
    assert result.stderr.count("failed ") == 2
    assert "images with an error instead of an answer: 6, shards that could not be read: 5" in result.stderr


def test_the_shipped_model(source: Path, tmp_path: Path) -> None:
    result = swinv2_command("predict", source, "-o", tmp_path / "out", "--readers", 0, "-k", 1)
    assert result.exit_code == 0
    assert "no --model given" in result.stderr
    assert {len(row["labels"]) for row in read_answers(tmp_path / "out")} == {1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no source was given; for example: swinv2 predict photos --output answers."),
        (["SOURCE"], "no --output was given"),
        (["SOURCE", "-o", "OUT", "--workers", "2"], "--workers was given without --ray"),
        (["SOURCE", "-o", "OUT", "--columns", "all"], "--columns is 'all'"),
        (["SOURCE", "-o", "OUT", "--dtype", "int8"], "--dtype is 'int8'"),
        (["SOURCE", "-o", "OUT", "--feature-type", "int8"], "--feature-type is 'int8'"),
        (["SOURCE", "-o", "OUT", "--stage", "stage1"], "needs --columns features"),
        (["SOURCE", "-o", "OUT", "--shard-size", "0"], "--shard-size"),
        (["gone", "-o", "OUT"], "nothing was found in 'gone'"),
        (["SOURCE/0000.png", "-o", "OUT"], "is an image. Name its folder"),
        (["SOURCE", "-o", "SOURCE/0000.png"], "is a file; expected a folder, or a new one"),
        (["SOURCE", "-o", "ftp://host/x"], "ftp:// may show files before they are complete"),
        (["SOURCE", "-o", "OUT", "-m", "./gone"], "there is no folder './gone'"),
    ],
)
def test_what_the_user_can_fix_is_one_sentence(
    model: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [each.replace("SOURCE", str(source)).replace("OUT", str(tmp_path / "out")) for each in arguments]
    given += [] if "-m" in given else ["-m", str(model)]
    result = swinv2_command("predict", *given)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("missing", "extra", "options"), [("pyarrow", "swinv2[parquet]", []), ("ray", "swinv2[ray]", ["--ray", "local"])]
)
def test_a_package_that_is_not_installed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, extra: str, options: list[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == missing else found(name, *more)
    )
    result = swinv2_command("predict", source, "-o", tmp_path / "out", *options)
    assert result.exit_code == 2
    assert f"install {extra}." in result.stderr


def test_a_full_disk_is_a_sentence(model: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("swinv2.shards.answers.AnswersWriter._write_group", fail)
    result = swinv2_command("predict", source, "-o", tmp_path / "out", "-m", model, "--readers", 0)
    assert result.exit_code == 2
    assert "no space is left on the disk" in result.stderr


def test_a_run_that_is_stopped_says_what_is_kept(
    model: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad.tar").write_bytes(b"x")
    sources = [tmp_path / "bad.tar", tmp_path / "gone.tar", source]
    arguments = ["predict", *sources, "-o", tmp_path / "out", "-m", model, "--shard-size", 2, "--readers", 0]
    computed = run.compute_here

    def stop(*given: Any) -> Iterator[Any]:
        yield from islice(computed(*given), 2)
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "compute_here", stop)
    stopped = swinv2_command(*arguments)
    assert stopped.exit_code != 0
    assert "stopped: 1 of 5 shards were computed and are kept; the same command computes the rest" in stopped.stderr
    monkeypatch.setattr(run, "compute_here", computed)
    assert "1 of 5 shards were done before" in swinv2_command(*arguments).stderr
    assert keys_of(tmp_path / "out") == list(images_of(7))


def test_ray_is_imported_for_ray_only(
    model: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Importing it would now be an error.
    monkeypatch.setitem(sys.modules, "ray", None)
    result = swinv2_command("predict", source, "-o", tmp_path / "out", "-m", model, "--readers", 0)
    assert result.exit_code == 0
