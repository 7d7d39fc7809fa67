"""Folders of classes with videos, and lists."""

from pathlib import Path

import numpy as np
import pytest

from clips import frames_of, write_clip, write_directions
from swinv2.errors import UsageError
from swinv2.images import BrokenImageError
from swinv2.train.data.classes import classes_to_train, match_classes
from swinv2.train.data.sources import open_dataset
from swinv2.train.data.videos.dataset import Segment, VideoDataset, open_segment, read_segment
from swinv2.train.data.videos.opening import open_videos


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_directions(tmp_path_factory.mktemp("directions"))


def write_list(folder: Path, name: str, *lines: str) -> str:
    (folder / name).write_text("\n".join(lines) + "\n")
    return str(folder / name)


def test_folders_of_classes(folder: Path) -> None:
    train, evaluated = open_videos(str(folder), "train"), open_videos(str(folder), "evaluation")
    assert (train.names, len(train), train.splits) == (("left", "right", "still"), 12, ("train", "validation"))
    assert (len(evaluated), evaluated.split) == (6, "validation")
    assert train[0] == (Segment(str(folder / "train/left/0.mp4")), 0, str(folder / "train/left/0.mp4"))
    assert isinstance(train.share(0.5, 0), VideoDataset)
    kept, aside = train.set_aside(0.25)
    assert (len(kept), np.bincount(aside.labels()).tolist()) == (9, [1, 1, 1])


@pytest.mark.parametrize(
    "lines",
    [
        ("path,label", "train/left/0.mp4,0", "train/right/0.mp4,1"),
        ("label,video,more", "0,train/left/0.mp4,x", "1,train/right/0.mp4,y"),
        ("train/left/0.mp4,0", "train/right/0.mp4,1"),
        ("train/left/0.mp4 0", "", "train/right/0.mp4 1"),
        ("train/left/0.mp4\t0", "train/right/0.mp4\t1"),
    ],
    ids=["csv", "other columns", "no header", "kinetics", "tabs"],
)
def test_lists(lines: tuple[str, ...], folder: Path) -> None:
    dataset = open_videos(write_list(folder, "some.csv", *lines), "train", names=("to the left", "to the right"))
    assert dataset.names == ("to the left", "to the right")
    assert [(sample.label, Path(sample.image.path)) for sample in dataset] == [
        (0, folder / "train/left/0.mp4"),
        (1, folder / "train/right/0.mp4"),
    ]
    assert all(sample.image[1:] == (0.0, None) for sample in dataset)


def test_words_are_classes_and_numbers_match_by_index(folder: Path) -> None:
    words = open_videos(write_list(folder, "words.csv", "train/left/0.mp4,b", "train/right/0.mp4,a"), "train")
    assert (words.names, words.labels().tolist()) == (("a", "b"), [1, 0])
    numbers = open_videos(write_list(folder, "numbers.txt", "train/left/0.mp4 3", "train/right/0.mp4 5"), "train")
    trained = classes_to_train(numbers)
    assert (trained.names, trained.labels().tolist()) == (("3", "5"), [0, 1])
    assert isinstance(match_classes(words, ("b", "a"), "the model"), VideoDataset)


def test_paths_may_have_spaces(tmp_path: Path) -> None:
    write_clip(tmp_path / "a b" / "c d.mp4", frames_of(0, 0, 2))
    dataset = open_videos(write_list(tmp_path, "list.txt", "a b/c d.mp4 7"), "train")
    assert dataset[0].image.path == str(tmp_path / "a b/c d.mp4")
    assert dataset.labels().tolist() == [7]


def test_a_list_for_each_split(tmp_path: Path) -> None:
    write_clip(tmp_path / "one.mp4", frames_of(0, 0, 2))
    write_list(tmp_path, "kinetics400_train_list_videos.txt", "one.mp4 0", "one.mp4 1")
    write_list(tmp_path, "kinetics400_val_list_videos.txt", "one.mp4 1")
    write_list(tmp_path, "classes.txt", "left", "right")
    assert len(open_videos(str(tmp_path), "train")) == 2
    found = open_videos(str(tmp_path), "evaluation")
    assert (len(found), found.split, set(found.splits)) == (1, "validation", {"train", "validation"})
    assert len(open_videos(str(tmp_path), "val")) == 1
    write_list(tmp_path, "test.csv", "one.mp4,0")
    write_list(tmp_path, "test.txt", "one.mp4 0")
    with pytest.raises(UsageError, match=r"two lists of the split 'test', test.csv and test.txt"):
        open_videos(str(tmp_path), "test")


def test_segments(folder: Path) -> None:
    """A part of a file is a video of its own: its frames are those of its seconds."""
    lines = "path,label,start,end", "train/right/0.mp4,0,0.5,", "train/right/0.mp4,1,0.25,0.75"
    dataset = open_videos(write_list(folder, "parts.csv", *lines), "train")
    later, middle = dataset[0], dataset[1]
    assert (later.image[1:], middle.image[1:]) == ((0.5, None), (0.25, 0.75))
    assert middle.name == f"{folder / 'train/right/0.mp4'} (0.25 s to 0.75 s)"
    opened = open_segment(middle.image)
    assert (opened.info.frames, opened.file.frames) == (6, 12)
    assert opened.info.seconds == pytest.approx(0.5)
    whole = open_segment(Segment(middle.image.path))
    every = read_segment(Segment(middle.image.path), whole, [(index + 0.5) / 12 for index in range(12)])
    part = read_segment(middle.image, opened, [(index + 0.5) / 12 for index in range(6)])
    assert np.array_equal(part, every[3:9])
    with pytest.raises(BrokenImageError, match="and its segment begins at 5"):
        open_segment(Segment(middle.image.path, 5.0))


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ((), "names no video"),
        (("nothing.mp4,0",), "neither that nor any other .* exists; its paths are relative to"),
        (("train/left/0.mp4",), "line 1 of .*; expected the path of a video and its label"),
        (("path,label,start,end", "train/left/0.mp4,0,x,1"), "line 2 of .* has the start 'x'; expected seconds"),
        (("path,label,start,end", "train/left/0.mp4,0,2,1"), "a segment from 2 to 1 s; expected an end after"),
        (("path,label,start,end", "train/left/0.mp4,0,nan,1"), "expected an end after the start"),
    ],
    ids=["empty", "elsewhere", "no label", "no number", "backward", "nan"],
)
def test_wrong_lists(lines: tuple[str, ...], sentence: str, folder: Path) -> None:
    with pytest.raises(UsageError, match=sentence):
        open_videos(write_list(folder, "wrong.csv", *lines), "train")


def test_what_is_no_source(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist; expected a folder of class folders with videos"):
        open_videos(str(tmp_path / "nothing"), "train")
    with pytest.raises(UsageError, match="is no list"):
        open_videos(str(folder / "train/left/0.mp4"), "train")
    with pytest.raises(UsageError, match="has no videos"):
        open_videos(str(tmp_path), "train")
    with pytest.raises(
        UsageError, match=r"has no images.* It has videos, such as .*: finetune them with --task video, and"
    ):
        open_dataset(str(folder), "train")


def test_a_broken_file_says_why(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(BrokenImageError, match=r"^it is not a video in a format that is read here"):
        open_segment(Segment(str(tmp_path / "a.mp4")))
    with pytest.raises(BrokenImageError, match=r"^there is no such file$"):
        open_segment(Segment(str(tmp_path / "b.mp4")))


def test_segments_of_one_file_stay_together(tmp_path: Path) -> None:
    """They are alike: in both parts, the evaluation would be of what was trained on."""
    lines = ["path,label,start,end"]
    lines += [f"v{file}.mp4,{'ab'[part % 2]},{part},{part + 1}" for file in range(10) for part in range(10)]
    for file in range(10):
        write_clip(tmp_path / f"v{file}.mp4", frames_of(1, 0))
    (tmp_path / "list.csv").write_text("\n".join(lines))
    rest, aside = open_videos(str(tmp_path / "list.csv"), "train").set_aside(0.25)
    files = [{part[index].image.path for index in range(len(part))} for part in (rest, aside)]
    assert files[0].isdisjoint(files[1])
    assert (len(rest), len(aside)) == (70, 30)
    (tmp_path / "one.csv").write_text("path,label,start,end\nv0.mp4,a,0,1\nv0.mp4,b,1,2\n")
    with pytest.raises(UsageError, match=r"no file of .* can be set aside to evaluate: each has all segments of a"):
        open_videos(str(tmp_path / "one.csv"), "train").set_aside(0.25)


def test_a_folder_of_images_says_so(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "photo.jpg").write_bytes(b"")
    with pytest.raises(
        UsageError,
        match=r"has no videos.* It has images, such as .*photo\.jpg: finetune them without --task video, and",
    ):
        open_videos(str(tmp_path), "train")


def test_no_class_is_set_aside_as_a_whole(tmp_path: Path) -> None:
    """The segments of class a are of one file, which stays in the training, whatever share is wanted."""
    files = {"v0": "a", "v1": "b", "v2": "b"}
    for file in files:
        write_clip(tmp_path / f"{file}.mp4", frames_of(1, 0))
    lines = [f"{file}.mp4,{label},{part},{part + 1}" for file, label in files.items() for part in range(3)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,start,end", *lines]))
    for share in (0.1, 0.34, 0.9):
        rest, aside = open_videos(str(tmp_path / "list.csv"), "train").set_aside(share)
        assert sorted(rest.labels()) == [0, 0, 0, 1, 1, 1]
        assert list(aside.labels()) == [1, 1, 1]
    (tmp_path / "two.csv").write_text("path,label,start,end\nv0.mp4,a,0,1\nv0.mp4,a,1,2\nv1.mp4,b,0,1\n")
    with pytest.raises(UsageError, match=r"each has all segments of a class"):
        open_videos(str(tmp_path / "two.csv"), "train").set_aside(0.34)


def test_a_header_of_other_names_is_no_video(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", frames_of(1, 0))
    (tmp_path / "list.csv").write_text("name,category\na.mp4,x\na.mp4,y\n")
    with pytest.raises(UsageError, match=r"the first line of .* is 'name,category': 'name' is no video"):
        open_videos(str(tmp_path / "list.csv"), "train")
