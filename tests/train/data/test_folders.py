"""Folders as people have them: what counts, what is left out, and that it is named."""

import os
import unicodedata
from pathlib import Path

import pytest

from swinv2.errors import UsageError
from swinv2.train.data.classes import classes_to_train
from swinv2.train.data.dataset import ImageDataset
from swinv2.train.data.sources import open_dataset


def make(folder: Path, *files: str) -> str:
    """Empty files; none is opened."""
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    return str(folder)


def seen(dataset: ImageDataset) -> list[tuple[str, str | None]]:
    """The file and the class of each image."""
    return [
        (os.path.basename(sample.name), None if sample.label is None else dataset.names[sample.label])
        for sample in dataset
    ]


class TestClasses:
    def test_the_class_is_the_first_folder(self, tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
        """Whatever lies deeper, and whatever the names are."""
        source = make(tmp_path, "a cat/1.png", "a cat/old/2019/2.JPG", "ünï/3.png", "__bg__/4.png", "10/5.png")
        found = open_dataset(source, "train")
        assert found.names == ("10", "__bg__", "a cat", "ünï")
        assert seen(found) == [
            ("5.png", "10"),
            ("4.png", "__bg__"),
            ("1.png", "a cat"),
            ("2.JPG", "a cat"),
            ("3.png", "ünï"),
        ]
        assert warnings.text == ""

    def test_stray_images_are_named_and_left_out(self, tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
        source = make(tmp_path, "cat/1.png", "dog/2.png", "stray.png")
        assert seen(open_dataset(source, "train")) == [("1.png", "cat"), ("2.png", "dog")]
        assert f"images beside the class folders of {source} are left out: stray.png" in warnings.text

    def test_without_labels_nothing_is_left_out(self, tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
        source = make(tmp_path, "1.png", "2.png", "edited/3.png")
        found = open_dataset(source, "train", needs_labels=False)
        assert seen(found) == [("1.png", None), ("2.png", None), ("3.png", None)]
        assert warnings.text == ""

    def test_empty_classes_are_named(self, tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
        source = make(tmp_path, "cat/1.png", "dog/2.png", "fish/x.xcf", "newt/.DS_Store")
        (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
        assert open_dataset(source, "train").names == ("cat", "dog")
        assert "gone (a link to nothing), fish (it has x.xcf), newt (empty). Put images" in warnings.text.replace(
            "fish (it has x.xcf), gone (a link to nothing)", "gone (a link to nothing), fish (it has x.xcf)"
        )

    def test_hidden_files_are_no_images(self, tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
        source = make(tmp_path, "cat/1.png", "cat/._1.png", "dog/2.png", "dog/.cache/3.png", ".trash/4.png", "._5.png")
        make(tmp_path, "cat/Thumbs.db", "cat/notes.txt")
        assert seen(open_dataset(source, "train")) == [("1.png", "cat"), ("2.png", "dog")]
        assert warnings.text == ""

    def test_links_are_followed_and_circles_end(self, tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
        make(tmp_path / "store", "a/1.png", "b/2.png")
        source = make(tmp_path / "data", "newt/3.png")
        (tmp_path / "data" / "cat").symlink_to(tmp_path / "store" / "a")
        (tmp_path / "data" / "dog").symlink_to(tmp_path / "store" / "b")
        (tmp_path / "store" / "b" / "circle").symlink_to(tmp_path / "data")
        (tmp_path / "data" / "all").symlink_to(tmp_path / "data")
        assert seen(open_dataset(source, "train")) == [("1.png", "cat"), ("2.png", "dog"), ("3.png", "newt")]
        assert "all (a link to a folder above)" in warnings.text

    def test_a_name_is_the_same_in_any_unicode_form(self, tmp_path: Path) -> None:
        name = "Käse"
        source = make(tmp_path, f"train/{name}/1.png", f"test/{unicodedata.normalize('NFD', name)}/2.png")
        assert open_dataset(source, "train").names == open_dataset(source, "test").names == (name,)

    def test_a_single_class_is_refused_with_its_name(self, tmp_path: Path) -> None:
        source = make(tmp_path, "photos/cat/1.png", "photos/dog/2.png")
        with pytest.raises(UsageError, match=r"images of only one class, 'photos'; .* folders directly below are"):
            classes_to_train(open_dataset(source, "train"))

    def test_a_name_that_is_no_text(self, tmp_path: Path) -> None:
        source = make(tmp_path, "cat/1.png", "dog/2.png")
        with open(os.fsencode(tmp_path / "cat") + b"/\xff.png", "wb"):
            pass
        with pytest.raises(UsageError, match=r"the name of .+/cat/.\.png is no valid text"):
            open_dataset(source, "train")


class TestSplits:
    def test_names_of_folders(self, tmp_path: Path) -> None:
        source = make(tmp_path, "Training/cat/1.png", "VAL/cat/2.png", "test/cat/3.png")
        for split, file in (("train", "1.png"), ("evaluation", "2.png"), ("val", "2.png"), ("test", "3.png")):
            assert seen(open_dataset(source, split)) == [(file, "cat")]
        with pytest.raises(UsageError, match=r"has the splits \['test', 'train', 'validation'\]; expected 'x'"):
            open_dataset(source, "x")

    def test_classes_are_those_of_the_split(self, tmp_path: Path) -> None:
        source = make(tmp_path, "train/cat/1.png", "train/dog/1.png", "validation/cat/2.png", "validation/newt/2.png")
        assert open_dataset(source, "train").names == ("cat", "dog")
        assert open_dataset(source, "validation").names == ("cat", "newt")

    def test_a_folder_without_splits(self, tmp_path: Path) -> None:
        source = make(tmp_path / "dev", "cat/1.png", "dog/2.png")
        for split in ("train", "evaluation", "validation", "dev"):
            found = open_dataset(source, split)
            assert (len(found), found.split, found.splits) == (2, None, ())
        with pytest.raises(UsageError, match=r"dev' has no folders of splits; expected 'test'\. Without --split"):
            open_dataset(source, "test")

    def test_images_outside_are_named(self, tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
        source = make(tmp_path, "train/cat/1.png", "val/cat/2.png", "more/cat/3.png", "4.png", "docs/readme.txt")
        assert len(open_dataset(source, "train")) == 1
        assert "has folders of splits, train, val; images outside of them are left out: 4.png, more" in warnings.text

    def test_a_class_called_like_a_split(self, tmp_path: Path) -> None:
        source = make(tmp_path, "cat/old/1.png", "test/2.png")
        with pytest.raises(UsageError, match=r"has the folder 'test', .* other folders of images, cat; move all"):
            open_dataset(source, "train")

    def test_splits_inside_of_classes(self, tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
        source = make(tmp_path, "cat/train/1.png", "cat/test/2.png", "dog/train/3.png")
        assert len(open_dataset(source, "train")) == 3
        assert "such as cat/train, whose images are taken together" in warnings.text
        assert "such as train/cat." in warnings.text

    def test_what_must_be_unpacked_is_named(self, tmp_path: Path) -> None:
        source = make(tmp_path, "raw/photos.zip")
        with pytest.raises(UsageError, match=r"has no images\. It has .+photos\.zip: unpack it"):
            open_dataset(source, "train")


class TestTables:
    @pytest.fixture(autouse=True)
    def fresh_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    def test_labels_of_a_table(self, tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
        source = make(tmp_path / "data", "1.png", "2.png", "3.png")
        # Not CSV: `datasets` leaves that file open, which is an error in tests.
        lines = ('{"file_name": "2.png", "label": "cat"}', '{"file_name": "1.png", "label": "dog"}')
        (tmp_path / "data" / "metadata.jsonl").write_text("\n".join(lines))
        assert seen(open_dataset(source, "train")) == [("2.png", "cat"), ("1.png", "dog")]
        assert warnings.messages == [f"images that are not in {source}/metadata.jsonl are left out: 3.png"]
        assert len(open_dataset(source, "train", needs_labels=False)) == 3

    def test_a_table_decides_over_folders(self, tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
        source = make(tmp_path / "data", "cat/1.png", "dog/2.png")
        lines = ('{"file_name": "cat/1.png", "text": "a"}', '{"file_name": "dog/2.png", "text": "b"}')
        (tmp_path / "data" / "metadata.jsonl").write_text("\n".join(lines))
        found = open_dataset(source, "train")
        assert "the folders beside it do not count as classes" in warnings.text
        with pytest.raises(UsageError, match=r"has no labels, but the columns \['text'\]"):
            found.labels()

    def test_a_table_without_names_of_files(self, tmp_path: Path) -> None:
        source = make(tmp_path / "data", "1.png")
        (tmp_path / "data" / "metadata.jsonl").write_text('{"name": "1.png", "label": "cat"}')
        with pytest.raises(UsageError, match=r"data' cannot be opened: `file_name`"):
            open_dataset(source, "train")
