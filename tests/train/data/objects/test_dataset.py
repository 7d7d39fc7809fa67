"""A data set of objects: shares, names of classes, copies."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from annotated import write_coco
from swinv2.errors import UsageError
from swinv2.train.data.objects.dataset import ObjectDataset, check_names
from swinv2.train.data.objects.opening import open_objects


@pytest.fixture
def opened(tmp_path: Path) -> ObjectDataset:
    annotations = [{"image_id": image, "category_id": (1, 4)[image % 2]} for image in range(20)]
    return open_objects(write_coco(tmp_path / "data", *annotations, {"iscrowd": 1}, images=21), "train")


def test_counts_are_those_of_the_chosen_images(opened: ObjectDataset) -> None:
    assert opened.counts().tolist() == [10, 10]
    part = opened.share(0.5, 1)
    assert len(part) == 10
    labels = np.concatenate([one.objects.labels[~one.objects.crowd] for one in part])
    assert part.counts().tolist() == np.bincount(labels, minlength=2).tolist()


def test_a_smaller_share_is_part_of_a_larger_one(opened: ObjectDataset) -> None:
    small, large = ({one.image_id for one in opened.share(share, 3)} for share in (0.2, 0.6))
    assert len(small) == 4
    assert small < large
    with pytest.raises(UsageError, match="expected above 0 and at most 1"):
        opened.share(0.0, 3)


def test_setting_aside_depends_on_the_names_of_the_files(opened: ObjectDataset, tmp_path: Path) -> None:
    rest, aside = opened.set_aside(0.3)
    assert (len(rest), len(aside)) == (15, 6)
    assert {one.name for one in rest} | {one.name for one in aside} == {one.name for one in opened}
    # Another folder and one image more.
    more = write_coco(tmp_path / "other", *({"image_id": image} for image in range(22)), images=22)
    again = {Path(one.name).name for one in open_objects(more, "train").set_aside(0.3)[1]}
    assert len(again & {Path(one.name).name for one in aside}) >= 5


def test_other_names_renumber_the_classes(opened: ObjectDataset) -> None:
    found = opened.with_names(("bird", "dog", "cat"), "the model")
    assert found.names == ("bird", "dog", "cat")
    assert found.category_ids == (5, 4, 1)
    assert [found[index].objects.labels[0] for index in (0, 1)] == [2, 1]
    assert found.counts().tolist() == [0, 10, 10]
    with pytest.raises(UsageError, match=r"has classes that the model does not have: dog; it has cat, bird"):
        opened.with_names(("cat", "bird"), "the model")
    with pytest.raises(UsageError, match=r"the model has the class name 'cat' twice"):
        opened.with_names(("cat", "dog", "cat"), "the model")


def test_given_names_are_an_order(opened: ObjectDataset) -> None:
    found = open_objects(opened.source, "train", names=("dog", "cat"))
    assert (found.names, found.category_ids) == (("dog", "cat"), (4, 1))


def test_it_can_be_sent_to_processes(opened: ObjectDataset) -> None:
    part = opened.share(0.5, 1)
    again = pickle.loads(pickle.dumps(part))
    assert [one.name for one in again] == [one.name for one in part]
    assert again[-1].objects.boxes.tolist() == part[9].objects.boxes.tolist()


def test_what_it_gives_may_be_changed(opened: ObjectDataset) -> None:
    opened[0].objects.boxes[:] = 0
    assert opened[0].objects.boxes[0].tolist() == [1, 1, 3, 3]


def test_an_index_behind_the_end(opened: ObjectDataset) -> None:
    with pytest.raises(IndexError):
        opened[21]


def test_a_name_that_is_there_twice_is_named() -> None:
    check_names(("cat", "dog"), "the model")
    with pytest.raises(UsageError, match=r"the model has the class name 'dog' twice; give each class another name"):
        check_names(("cat", "dog", "bird", "dog"), "the model")
