"""The same images from each source, and a sentence where there are none."""

import io
import json
import os
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from colours import COLOURS, draw_colours
from swinv2.errors import UsageError
from swinv2.train.data.augment import decode
from swinv2.train.data.dataset import ImageDataset, Sample
from swinv2.train.data.sources import open_dataset

NAMES = tuple(COLOURS)
COUNT = {"train": 4, "validation": 2}
"""Images of each colour."""


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test sees what another one, or an earlier run, has cached."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    was_on = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    yield
    if was_on:
        datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders below a folder for each split."""
    source = tmp_path_factory.mktemp("data") / "pictures"
    for seed, (split, count) in enumerate(COUNT.items()):
        draw_colours(source / split, count, seed)
    return source


def stored(dataset: Path, split: str) -> list[tuple[bytes, int]]:
    """Contents and label of every image."""
    return [
        (file.read_bytes(), label)
        for label, name in enumerate(NAMES)
        for file in sorted((dataset / split / name).iterdir())
    ]


def table(dataset: Path, split: str) -> datasets.Dataset:
    rows = stored(dataset, split)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(NAMES))})
    columns = {"image": [{"bytes": file, "path": None} for file, _ in rows], "label": [label for _, label in rows]}
    return datasets.Dataset.from_dict(columns, features=features)


def write_tar(path: Path, rows: list[tuple[bytes, int]], first: int = 0) -> None:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for index, (file, label) in enumerate(rows):
            for suffix, content in (("png", file), ("cls", str(label).encode())):
                member = tarfile.TarInfo(f"{first + index:04}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def class_folders(dataset: Path, source: Path) -> str:
    return str(dataset / "train")


def split_folders(dataset: Path, source: Path) -> str:
    return str(dataset)


def parquet_file(dataset: Path, source: Path) -> str:
    source.mkdir()
    table(dataset, "train").to_parquet(source / "any.parquet")
    return str(source / "any.parquet")


def parquet_glob(dataset: Path, source: Path) -> str:
    source.mkdir()
    for index in range(3):
        table(dataset, "train").select(range(4 * index, 4 * index + 4)).to_parquet(source / f"part-{index}.parquet")
    return str(source / "part-*.parquet")


def parquet_folder(dataset: Path, source: Path) -> str:
    source.mkdir()
    for split in COUNT:
        table(dataset, split).to_parquet(source / f"{split}-00000-of-00001.parquet")
    (source / "README.md").write_text("Not a table.")
    return str(source)


def tar_file(dataset: Path, source: Path) -> str:
    write_tar(source / "any.tar", stored(dataset, "train"))
    return str(source / "any.tar")


def tar_folder(dataset: Path, source: Path) -> str:
    rows = stored(dataset, "train")
    write_tar(source / "train-0.tar", rows[:5])
    write_tar(source / "train-1.tar", rows[5:], first=5)
    write_tar(source / "val-0.tar", stored(dataset, "validation"))
    return str(source)


def saved(dataset: Path, source: Path) -> str:
    table(dataset, "train").with_format("torch").save_to_disk(source)
    return str(source)


def saved_splits(dataset: Path, source: Path) -> str:
    datasets.DatasetDict({split: table(dataset, split) for split in COUNT}).save_to_disk(source)
    return str(source)


Places = Callable[[Path, Path], str]
WITH_SPLITS = [split_folders, parquet_folder, tar_folder, saved_splits]
PLACES = [*WITH_SPLITS, class_folders, parquet_file, parquet_glob, tar_file, saved]


def contents(sample: Sample) -> bytes:
    """What is stored, read from its file if need be."""
    assert isinstance(sample.image, (str, bytes))
    return Path(sample.image).read_bytes() if isinstance(sample.image, str) else sample.image


def seen(dataset: ImageDataset) -> list[tuple[bytes, int | None]]:
    return [(contents(sample), sample.label) for sample in dataset]


class TestPlaces:
    @pytest.mark.parametrize("make", PLACES)
    def test_rows_and_labels(self, make: Places, dataset: Path, tmp_path: Path) -> None:
        source = make(dataset, tmp_path / "place")
        found = open_dataset(source, "train")
        assert not found.streams
        assert len(found) == 12
        assert seen(found) == stored(dataset, "train")
        assert found.labels().tolist() == [label for _, label in stored(dataset, "train")]
        assert found.names == (() if "tar" in make.__name__ else NAMES)
        assert decode(found[3].image, 3).size == (48, 40)

    @pytest.mark.parametrize("make", PLACES)
    def test_streaming(self, make: Places, dataset: Path, tmp_path: Path) -> None:
        found = open_dataset(make(dataset, tmp_path / "place"), "train", streaming=True)
        assert found.streams
        assert seen(found) == stored(dataset, "train")
        assert found.names == (() if "tar" in make.__name__ else NAMES)

    @pytest.mark.parametrize("make", WITH_SPLITS)
    @pytest.mark.parametrize("streaming", [False, True])
    def test_another_split(self, make: Places, streaming: bool, dataset: Path, tmp_path: Path) -> None:
        source = make(dataset, tmp_path / "place")
        found = open_dataset(source, "evaluation", streaming=streaming)
        assert seen(found) == stored(dataset, "validation")
        with pytest.raises(UsageError, match=r"splits \['train', 'validation'\]; expected 'test'"):
            open_dataset(source, "test")

    @pytest.mark.parametrize("make", [parquet_file, parquet_glob, tar_file, saved])
    def test_files_are_whatever_split_is_asked_for(self, make: Places, dataset: Path, tmp_path: Path) -> None:
        assert len(open_dataset(make(dataset, tmp_path / "place"), "evaluation")) == 12

    def test_images_without_labels(self, dataset: Path, tmp_path: Path) -> None:
        """With names that `datasets` would take for those of splits."""
        files = [file for file, _ in stored(dataset, "train")]
        for index, file in enumerate(files):
            (tmp_path / f"{index:02}{('-test-', '_train', '')[index % 3]}.png").write_bytes(file)
        for streaming in (False, True):
            found = open_dataset(str(tmp_path), "train", streaming=streaming)
            assert [contents(row) for row in found] == files
            assert {row.label for row in found} == {None}
            assert (found.label_column, found.names) == (None, ())
        assert found.sample({"image": {"path": "a.png", "bytes": None}}, 0) == Sample("a.png", None, "a.png")

    def test_classes_that_are_called_like_splits(self, dataset: Path, tmp_path: Path) -> None:
        """At the top nobody can tell; below a split they are classes."""
        draw_colours(tmp_path / "data" / "train", 2)
        os.rename(tmp_path / "data" / "train" / "red", tmp_path / "data" / "train" / "train")
        assert open_dataset(str(tmp_path / "data"), "train").names == ("blue", "green", "train")
        with pytest.raises(
            UsageError, match=r"has the folder 'train', which is the name of a split, and .* blue, green;"
        ):
            open_dataset(str(tmp_path / "data" / "train"), "train")

    def test_a_folder_with_characters_of_globs(self, dataset: Path, tmp_path: Path) -> None:
        source = tmp_path / "my [data] *"
        draw_colours(source, 2)
        assert len(open_dataset(str(source), "train")) == 6
        write_tar(tmp_path / "[x]" / "a[1].tar", stored(dataset, "train"))
        assert len(open_dataset(str(tmp_path / "[x]" / "a[1].tar"), "train")) == 12
        assert len(open_dataset(str(tmp_path / "[x]"), "train")) == 12

    def test_a_folder_that_changed_is_read_anew(self, tmp_path: Path) -> None:
        draw_colours(tmp_path / "data", 2)
        source = str(tmp_path / "data")
        assert len(open_dataset(source, "train")) == 6
        draw_colours(tmp_path / "data", 3)
        assert len(open_dataset(source, "train")) == 9
        os.rename(tmp_path / "data" / "red", tmp_path / "data" / "amber")
        assert open_dataset(source, "train").names == ("amber", "blue", "green")
        (tmp_path / "data" / "amber" / "0.png").unlink()
        assert len(open_dataset(source, "train")) == 8
        table_file = tmp_path / "rows.parquet"
        for count in (2, 3):
            datasets.Dataset.from_dict({"image": [b"x"] * count}).to_parquet(table_file)
            assert len(open_dataset(str(table_file), "train")) == count

    def test_names_in_messages(self, dataset: Path, tmp_path: Path) -> None:
        assert open_dataset(str(dataset), "train")[0].name == str(dataset / "train" / "blue" / "0.png")
        source = tar_file(dataset, tmp_path / "place")
        assert open_dataset(source, "train")[7].name == "0007"
        source = parquet_file(dataset, tmp_path / "other")
        assert open_dataset(source, "train")[7].name == f"{source}[7]"


class TestColumns:
    def parquet(self, tmp_path: Path, **columns: Any) -> str:
        datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "rows.parquet")
        return str(tmp_path / "rows.parquet")

    @pytest.mark.parametrize("streaming", [False, True])
    def test_found_by_their_names(self, tmp_path: Path, streaming: bool) -> None:
        source = self.parquet(tmp_path, img=[b"x", b"y"], other=[3, 4], target=[1, 0])
        found = open_dataset(source, "train", streaming=streaming, names=["no", "yes"])
        assert list(found) == [Sample(b"x", 1, f"{source}[0]"), Sample(b"y", 0, f"{source}[1]")]
        assert found.names == ("no", "yes")

    def test_given(self, tmp_path: Path) -> None:
        source = self.parquet(tmp_path, image=[b"x"], png=[b"y"], label=[1], cls=[0])
        with pytest.raises(UsageError, match=r"columns \['image', 'png'\]; choose one with --image-column"):
            open_dataset(source, "train", label_column="cls")
        with pytest.raises(UsageError, match=r"has the columns \['label', 'cls'\]; choose one with --label-column"):
            open_dataset(source, "train", image_column="png")
        found = open_dataset(source, "train", image_column="png", label_column="cls")
        assert found[0][:2] == (b"y", 0)
        for options in ({"image_column": "jpg"}, {"image_column": "png", "label_column": "jpg"}):
            with pytest.raises(UsageError, match=r"no column 'jpg'; it has \['cls', 'image', 'label', 'png'\]"):
                open_dataset(source, "train", **options)

    def test_no_image_at_all(self, tmp_path: Path) -> None:
        source = self.parquet(tmp_path, text=["x"], label=[1])
        with pytest.raises(UsageError, match=r"has the columns \['label', 'text'\]"):
            open_dataset(source, "train")

    @pytest.mark.parametrize("streaming", [False, True])
    def test_arrays(self, tmp_path: Path, streaming: bool) -> None:
        """Images of other channels can come in no other way."""
        pixels = np.arange(3 * 4 * 5 * 2, dtype=np.uint8).reshape(3, 4, 5, 2)
        features = datasets.Features({"image": datasets.Array3D((4, 5, 2), "uint8")})
        rows = datasets.Dataset.from_dict({"image": list(pixels)}, features=features)
        rows.save_to_disk(tmp_path / "saved")
        found = open_dataset(str(tmp_path / "saved"), "train", streaming=streaming)
        for sample, expected in zip(found, pixels, strict=True):
            assert np.array_equal(decode(sample.image, 2).numpy(), expected.transpose(2, 0, 1))

    def test_numbers_that_are_no_eight_bits_are_not_cut_off(self, tmp_path: Path) -> None:
        source = self.parquet(tmp_path, image=[[[[300, 0, 0]]]])
        with pytest.raises(UsageError, match=r"expected .* of uint8"):
            decode(open_dataset(source, "train")[0].image, 3)

    def test_a_image_that_is_not_there(self, tmp_path: Path) -> None:
        features = datasets.Features({"image": datasets.Image()})
        datasets.Dataset.from_dict({"image": [None]}, features=features).to_parquet(tmp_path / "rows.parquet")
        assert open_dataset(str(tmp_path / "rows.parquet"), "train")[0].image == b""

    @pytest.mark.parametrize(("labels", "shown"), [([1, None], "None"), ([0.5, 1.0], "0.5")])
    def test_labels_that_are_no_integers(self, tmp_path: Path, labels: list[Any], shown: str) -> None:
        found = open_dataset(self.parquet(tmp_path, image=[b"x"] * 2, label=labels), "train")
        for read in (found.labels, lambda: list(found)):
            with pytest.raises(UsageError, match=f"has the label {shown} in the column 'label'; expected integers"):
                read()

    def test_words_become_classes(self, tmp_path: Path) -> None:
        source = self.parquet(tmp_path, image=[b"x", b"y", b"z"], label=["dog", "cat", "dog"])
        found = open_dataset(source, "train")
        assert (found.names, found.labels().tolist()) == (("cat", "dog"), [1, 0, 1])
        assert [contents(sample) for sample in found] == [b"x", b"y", b"z"]
        with pytest.raises(UsageError, match=r"has the label 'dog' .* expected integers.* leave out --streaming"):
            list(open_dataset(source, "train", streaming=True))
        source = self.parquet(tmp_path, image=[b"x", b"y", b"z"], label=["dog", None, "dog"])
        with pytest.raises(UsageError, match=r"no label in the column 'label' for 1 of 3 images, first for .* row 1"):
            open_dataset(source, "train")

    def test_other_columns_are_named_if_there_are_no_labels(self, tmp_path: Path) -> None:
        source = self.parquet(tmp_path, image=[b"x"], breed=[1])
        with pytest.raises(UsageError, match=r"has no labels, but the columns \['breed'\]; .* with --label-column"):
            open_dataset(source, "train").labels()

    @pytest.mark.parametrize(
        ("feature", "stored"),
        [
            (datasets.ClassLabel(names=["ant", "bee", "cat"]), [[0, 2], [], [1]]),
            (datasets.Value("int64"), [[0, 2], [], [1]]),
            (datasets.Value("string"), [["ant", "cat"], [], ["bee"]]),
        ],
        ids=["classes", "numbers", "names"],
    )
    @pytest.mark.parametrize("streaming", [False, True])
    def test_several_labels(self, tmp_path: Path, feature: Any, stored: list[Any], streaming: bool) -> None:
        features = datasets.Features({"image": datasets.Value("binary"), "labels": datasets.Sequence(feature)})
        rows = datasets.Dataset.from_dict({"image": [b"x"] * 3, "labels": stored}, features=features)
        rows.to_parquet(tmp_path / "rows.parquet")
        found = open_dataset(str(tmp_path / "rows.parquet"), "train", streaming=streaming)
        assert found.several
        if streaming and feature == datasets.Value("string"):
            with pytest.raises(UsageError, match="if the labels are words, leave out --streaming"):
                list(found)
            return
        assert [sample.label for sample in found] == [(0, 2), (), (1,)]
        assert found.names == (() if feature == datasets.Value("int64") else ("ant", "bee", "cat"))

    def test_several_labels_of_a_folder(self, tmp_path: Path) -> None:
        """A folder with metadata.jsonl, as `datasets` reads it."""
        draw_colours(tmp_path / "train", 1)
        tags = {"blue": ["cold"], "green": [], "red": ["warm", "loud"]}
        lines = [json.dumps({"file_name": f"{name}/0.png", "labels": tags[name]}) for name in NAMES]
        (tmp_path / "train" / "metadata.jsonl").write_text("\n".join(lines))
        found = open_dataset(str(tmp_path), "train")
        assert (found.names, found.several) == (("cold", "loud", "warm"), True)
        assert [(Path(sample.name).parent.name, sample.label) for sample in found] == [
            ("blue", (0,)),
            ("green", ()),
            ("red", (2, 1)),
        ]

    @pytest.mark.parametrize(
        ("labels", "shown"),
        [([[0], None], "None"), ([[0], [1, 1]], r"\[1, 1\]"), ([[0.5], []], "0.5")],
    )
    def test_lists_that_are_no_labels(self, tmp_path: Path, labels: list[Any], shown: str) -> None:
        """A list of zeros and ones, one for each class, is refused because of its repetitions."""
        found = open_dataset(self.parquet(tmp_path, image=[b"x"] * 2, label=labels), "train")
        for read in (found.labels, lambda: list(found)):
            with pytest.raises(UsageError, match=f"has the label {shown} .* expected"):
                read()

    @pytest.mark.parametrize("missing", [None, ["b", None]])
    def test_lists_of_words_that_lack_one(self, tmp_path: Path, missing: Any) -> None:
        source = self.parquet(tmp_path, image=[b"x"] * 3, label=[["a"], [], missing])
        with pytest.raises(UsageError, match=r"for 1 of 3 images, first for that of row 2, .* a label, or \[\], or"):
            open_dataset(source, "train")

    def test_a_class_is_preferred_to_a_list(self, tmp_path: Path) -> None:
        names = datasets.ClassLabel(names=["a", "b"])
        features = datasets.Features({"image": datasets.Value("binary"), "x": names, "y": datasets.Sequence(names)})
        rows = datasets.Dataset.from_dict({"image": [b"x"], "x": [1], "y": [[0]]}, features=features)
        rows.to_parquet(tmp_path / "rows.parquet")
        assert open_dataset(str(tmp_path / "rows.parquet"), "train").label_column == "x"
        assert open_dataset(str(tmp_path / "rows.parquet"), "train", label_column="y")[0].label == (0,)

    def test_names_twice(self, dataset: Path) -> None:
        for names in (NAMES, NAMES[::-1]):
            assert open_dataset(str(dataset), "train", names=names).names == NAMES
        with pytest.raises(
            UsageError, match=r"has class names \(blue, green, red\); leave out --label-names-file \(a, b\)\."
        ):
            open_dataset(str(dataset), "train", names=["a", "b"])


class TestRefusals:
    @pytest.mark.parametrize("source", ["/no/such/place", "./nowhere", "a/b/c"])
    def test_no_such_place(self, source: str) -> None:
        with pytest.raises(UsageError, match=f"^'{source}' does not exist"):
            open_dataset(source, "train")

    def test_no_such_data_set(self) -> None:
        with pytest.raises(UsageError, match=r"^there is no file or folder 'nobody/nothing:config'.+: .+nobody"):
            open_dataset("nobody/nothing:config", "train")

    def test_no_match(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"x-\*\.parquet' matches no file"):
            open_dataset(f"{tmp_path}/x-*.parquet", "train")

    def test_a_file_of_another_kind(self, tmp_path: Path) -> None:
        (tmp_path / "x.zip").write_bytes(b"x")
        with pytest.raises(UsageError, match=r"x\.zip' is a file; expected a folder, or files \.parquet"):
            open_dataset(str(tmp_path / "x.zip"), "train")

    @pytest.mark.parametrize("streaming", [False, True])
    def test_no_images(self, tmp_path: Path, streaming: bool) -> None:
        (tmp_path / "data" / "train").mkdir(parents=True)
        (tmp_path / "data" / "train" / "notes.txt").write_text("x")
        for source, sentence in (("data", "data' has no images in the split 'train'"), ("data/train", "has no images")):
            with pytest.raises(UsageError, match=sentence):
                open_dataset(str(tmp_path / source), "train", streaming=streaming)

    def test_no_rows(self, tmp_path: Path) -> None:
        datasets.Dataset.from_dict({"image": [b"x"]}).select([]).to_parquet(tmp_path / "rows.parquet")
        with pytest.raises(UsageError, match=r"rows\.parquet' cannot be opened: .* no data"):
            open_dataset(str(tmp_path / "rows.parquet"), "train")
        datasets.Dataset.from_dict({"image": [b"x"]}).select([]).save_to_disk(tmp_path / "saved")
        with pytest.raises(UsageError, match="saved' cannot be opened"):
            open_dataset(str(tmp_path / "saved"), "train")

    @pytest.mark.parametrize("streaming", [False, True])
    @pytest.mark.parametrize("name", ["x.parquet", "x.tar", "x.tar.gz"])
    def test_damaged_files(self, tmp_path: Path, name: str, streaming: bool) -> None:
        (tmp_path / name).write_bytes(b"\x1f\x8b" + b"x" * 100)
        with pytest.raises(UsageError, match=f"{name}' cannot be opened: .+"):
            open_dataset(str(tmp_path / name), "train", streaming=streaming)

    def test_files_of_no_split(self, dataset: Path, tmp_path: Path) -> None:
        source = tar_folder(dataset, tmp_path / "place")
        write_tar(tmp_path / "place" / "more.tar", stored(dataset, "train"))
        with pytest.raises(UsageError, match=r"files without a split, more\.tar; choose files with a glob"):
            open_dataset(source, "train")

    def test_files_beside_class_folders(self, dataset: Path, tmp_path: Path) -> None:
        """An archive that was unpacked where it lies, or features of the images."""
        draw_colours(tmp_path / "data", 1)
        for name in ("flowers.tgz", "features.parquet"):
            (tmp_path / "data" / name).touch()
            with pytest.raises(UsageError, match=rf"files, {name}, and folders of images, blue, .*; move the files"):
                open_dataset(str(tmp_path / "data"), "train")
            (tmp_path / "data" / name).rename(tmp_path / "data" / f".{name}")
        assert len(open_dataset(str(tmp_path / "data"), "train")) == 3

    def test_labels_of_what_has_none_or_streams(self, dataset: Path) -> None:
        with pytest.raises(UsageError, match="streams, so its labels are not known in advance"):
            open_dataset(str(dataset), "train", streaming=True).labels()
        with pytest.raises(UsageError, match="has no labels; sort the images"):
            open_dataset(str(dataset / "train" / "red"), "train").labels()


class TestBars:
    def generate(self, tmp_path: Path) -> None:
        datasets.Dataset.from_dict({"image": [b"x"], "label": [0]}).to_parquet(tmp_path / "rows.parquet")
        datasets.enable_progress_bars()
        open_dataset(str(tmp_path / "rows.parquet"), "train")

    def test_none_in_a_log(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.generate(tmp_path)
        assert capfd.readouterr().err == ""
        assert datasets.is_progress_bar_enabled()

    def test_in_a_terminal(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        self.generate(tmp_path)
        assert "Generating" in capsys.readouterr().err
