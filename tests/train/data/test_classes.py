"""Classes are matched by name; what does not match is counted and named."""

from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import pytest

from swinv2.errors import UsageError
from swinv2.train.data.classes import classes_to_train, match_classes
from swinv2.train.data.dataset import ImageDataset
from swinv2.train.data.sources import open_dataset


def made(labels: Sequence[int], names: Sequence[str] = ()) -> ImageDataset:
    """Images that are their stored label."""
    rows = datasets.Dataset.from_dict({"image": [bytes([label % 256]) for label in labels], "label": labels})
    return ImageDataset(rows, "image", "label", tuple(names), "photos")


def seen(dataset: ImageDataset) -> list[tuple[int, int | None]]:
    """The stored and the present label of each image; they also are those of all labels at once."""
    samples = list(dataset)
    assert [sample.label for sample in samples] == dataset.labels().tolist()
    return [(sample.image[0], sample.label) for sample in samples if isinstance(sample.image, bytes)]


class TestTraining:
    def test_a_class_without_images_becomes_no_output(self, warnings: pytest.LogCaptureFixture) -> None:
        found = classes_to_train(made([0, 3, 0, 1], ["cat", "dog", "newt", "owl"]))
        assert found.names == ("cat", "dog", "owl")
        assert seen(found) == [(0, 0), (3, 2), (0, 0), (1, 1)]
        assert "photos has no image to train 'newt'; the classifier does not get this class" in warnings.text

    def test_nothing_to_say(self, warnings: pytest.LogCaptureFixture) -> None:
        assert seen(classes_to_train(made([1, 0], ["cat", "dog"]))) == [(1, 1), (0, 0)]
        assert classes_to_train(made([1, 0])).names == ("0", "1")
        assert warnings.text == ""

    @pytest.mark.parametrize("most", [1_000_000, 2**33])
    def test_numbers_that_do_not_occur_are_no_classes(self, most: int, warnings: pytest.LogCaptureFixture) -> None:
        found = classes_to_train(made([most, 5, 11, 5]))
        assert found.names == ("5", "11", str(most))
        assert seen(found) == [(most % 256, 2), (5, 0), (11, 1), (5, 0)]
        matched = match_classes(made([5, most]), found.names, "the training data")
        assert seen(matched) == [(5, 0), (most % 256, 2)]
        assert warnings.text == ""
        again = match_classes(match_classes(made([5, most]), found.names, "it"), [str(most), "7"], "it")
        assert seen(again) == [(most % 256, 0)]

    def test_refusals(self) -> None:
        with pytest.raises(UsageError, match="images of only one class, 'dog'; a classifier needs two"):
            classes_to_train(made([1, 1], ["cat", "dog"]))
        with pytest.raises(UsageError, match="several classes with the name 'crane'"):
            classes_to_train(made([1, 0], ["crane", "crane"]))
        with pytest.raises(UsageError, match="has a label -1"):
            classes_to_train(made([-1, -1]))
        stream = made([0]).rows.to_iterable_dataset()
        with pytest.raises(UsageError, match="does not name its classes; give --label-names-file"):
            classes_to_train(ImageDataset(stream, "image", "label", (), "photos"))


class TestMatching:
    def test_another_order(self, warnings: pytest.LogCaptureFixture) -> None:
        found = match_classes(made([0, 1, 2], ["cat", "dog", "newt"]), ["newt", "cat", "dog"], "the model")
        assert (found.names, seen(found)) == (("newt", "cat", "dog"), [(0, 1), (1, 2), (2, 0)])
        assert warnings.text == ""

    def test_fewer_and_more_classes(self, warnings: pytest.LogCaptureFixture) -> None:
        found = match_classes(made([1, 0, 1, 2], ["cat", "dog", "newt"]), ["ape", "newt", "cat"], "the model")
        assert seen(found) == [(0, 2), (2, 1)]
        assert "classes that the model lacks; their images are left out of the evaluation: 'dog' (2)" in warnings.text

    def test_twice(self) -> None:
        """A data set that was matched can be matched again, also after a share was drawn."""
        once = match_classes(made([1, 0, 1, 2], ["cat", "dog", "newt"]), ["ape", "newt", "cat"], "the model")
        assert seen(match_classes(once, ["cat", "newt"], "the model")) == [(0, 0), (2, 1)]
        assert seen(match_classes(once.share(0.5, 0), ["newt"], "the model")) == [(2, 0)]

    def test_names_without_images_do_not_count(self, warnings: pytest.LogCaptureFixture) -> None:
        assert seen(match_classes(made([1], ["cat", "dog"]), ["dog"], "the model")) == [(1, 0)]
        assert warnings.text == ""
        with pytest.raises(UsageError, match=r"classes 'dog', and the model has none of them, but 'cat', 'ape'"):
            match_classes(made([1], ["cat", "dog"]), ["cat", "ape"], "the model")

    def test_numbers(self, warnings: pytest.LogCaptureFixture) -> None:
        assert seen(match_classes(made([1, 0]), ["1", "0"], "the model")) == [(1, 0), (0, 1)]
        assert warnings.text == ""
        assert seen(match_classes(made([1, 0]), ["cat", "dog"], "the model")) == [(1, 1), (0, 0)]
        assert "photos has numbers instead of class names: 0 is 'cat' of the model" in warnings.text
        with pytest.raises(UsageError, match="has a label 2, but there are 2 classes"):
            match_classes(made([2]), ["cat", "dog"], "the model")


class TestSeveralLabels:
    """Labels of other classes go, their images stay."""

    def tagged(self, labels: list[list[int]], names: Sequence[str] = ()) -> ImageDataset:
        rows = datasets.Dataset.from_dict({"image": [b"x"] * len(labels), "label": labels})
        return ImageDataset(rows, "image", "label", tuple(names), "photos", several=True)

    def test_training(self, warnings: pytest.LogCaptureFixture) -> None:
        found = classes_to_train(self.tagged([[0, 3], [], [3]], ["cat", "dog", "newt", "owl"]))
        assert found.names == ("cat", "owl")
        assert [sample.label for sample in found] == [(0, 1), (), (1,)]
        assert "has no image to train 'dog', 'newt'" in warnings.text

    def test_one_class_is_yes_or_no(self) -> None:
        assert classes_to_train(self.tagged([[0], []], ["cat"])).names == ("cat",)

    def test_no_label_at_all(self) -> None:
        with pytest.raises(UsageError, match="photos has no label in the column 'label'"):
            classes_to_train(self.tagged([[], []]))

    def test_evaluation(self, warnings: pytest.LogCaptureFixture) -> None:
        found = match_classes(self.tagged([[0, 1, 2], [1], []], ["owl", "wolf", "cat"]), ["cat", "dog", "owl"], "it")
        assert [sample.label for sample in found] == [(2, 0), (), ()]
        assert found.labels().tolist() == [2, 0]
        assert "classes that it lacks; these labels are left out of the evaluation: 'wolf' (2)" in warnings.text


def test_splits_of_parquet_files_have_names_of_their_own(tmp_path: Path) -> None:
    for split, names in (("train", ["cat", "dog"]), ("validation", ["dog", "cat", "newt"])):
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
        rows = {"image": [np.zeros((4, 4, 3), np.uint8)] * 2, "label": [0, 1]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{split}.parquet")
    train, validation = (open_dataset(str(tmp_path), split) for split in ("train", "evaluation"))
    assert (train.names, validation.names) == (("cat", "dog"), ("dog", "cat", "newt"))
    assert validation.splits == ("train", "validation")
    assert match_classes(validation, train.names, "the training data").labels().tolist() == [1, 0]
