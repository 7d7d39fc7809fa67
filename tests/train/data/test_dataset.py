"""A share of the samples, and whose labels have a class."""

import datasets
import numpy as np
import pytest

from swinv2.errors import UsageError
from swinv2.train.data.dataset import ImageDataset


@pytest.fixture(scope="module")
def many() -> ImageDataset:
    """A hundred rows of a class, forty of another, three of a third."""
    rows = datasets.Dataset.from_dict({"image": [b""] * 143, "label": np.repeat([0, 1, 2], [100, 40, 3])})
    return ImageDataset(rows, "image", "label", (), "source")


class TestShare:
    def test_of_each_class(self, many: ImageDataset) -> None:
        part = many.share(0.1, 0)
        assert np.bincount(part.labels()).tolist() == [10, 4, 1]
        assert [row.label for row in part] == part.labels().tolist()
        assert part[14].name == f"source[{part.chosen[14]}]"

    def test_equal_seeds(self, many: ImageDataset) -> None:
        one, same, other = (many.share(0.5, seed).chosen for seed in (1, 1, 2))
        assert np.array_equal(one, same)
        assert not np.array_equal(one, other)

    def test_smaller_ones_lie_in_larger_ones(self, many: ImageDataset) -> None:
        small, large = many.share(0.1, 1).chosen, many.share(0.5, 1).chosen
        assert set(small) < set(large)
        assert many.share(1.0, 1) is many

    def test_of_a_share(self, many: ImageDataset) -> None:
        half = many.share(0.5, 1)
        quarter = half.share(0.5, 2)
        assert set(quarter.chosen) < set(half.chosen)
        assert np.bincount(quarter.labels()).tolist() == [25, 10, 1]

    def test_without_labels(self, many: ImageDataset) -> None:
        rows = ImageDataset(many.rows, "image", None, (), "source").share(0.1, 0)
        assert len(set(rows.chosen)) == 14

    def test_each_part_has_an_image_of_each_class(self, many: ImageDataset) -> None:
        for fraction, expected in ((0.001, [1, 1, 1]), (0.999, [99, 39, 2])):
            drawn, rest = many.divide(fraction, 0)
            assert np.bincount(drawn.labels()).tolist() == expected
            assert (np.bincount(drawn.labels()) + np.bincount(rest.labels())).tolist() == [100, 40, 3]

    def test_what_is_set_aside_stays_so_if_images_are_added(self) -> None:
        def make(count: int, order: int) -> ImageDataset:
            names = [f"holiday/{index:05}.jpg" for index in np.random.default_rng(order).permutation(count)]
            rows = {"image": [{"bytes": b"", "path": name} for name in names], "label": [0] * count}
            return ImageDataset(datasets.Dataset.from_dict(rows), "image", "label", ("a",), "source")

        before, after = ({sample.name for sample in make(*told).set_aside(0.1)[1]} for told in ((1000, 0), (1100, 1)))
        assert (len(before), len(after)) == (100, 110)
        # Of 100 images more, some have their place among a tenth.
        assert len(before - after) <= 10
        rest, aside = make(1000, 0).set_aside(0.1)
        assert set(rest.chosen) | set(aside.chosen) == set(range(1000))
        # Neither the last images nor the first ones.
        assert 300 < np.mean([int(sample.name[-9:-4]) for sample in aside]) < 700

    @pytest.mark.parametrize("column", ["structs", "strings"])
    def test_images_of_equal_names_in_several_folders(self, column: str) -> None:
        """The folders of patients, for example: not those of the last ones."""
        paths = [f"data/a/patient{index:02}/image.png" for index in range(100)]
        rows = [{"bytes": None, "path": path} for path in paths] if column == "structs" else paths
        dataset = ImageDataset(datasets.Dataset.from_dict({"image": rows}), "image", None, (), "data")
        _, aside = dataset.set_aside(0.1)
        assert len(aside) == 10
        assert 25 < np.mean(aside.chosen) < 75
        # The place of the folder does not matter.
        moved = [{"bytes": None, "path": f"/elsewhere/{path}"} for path in paths]
        elsewhere = ImageDataset(datasets.Dataset.from_dict({"image": moved}), "image", None, (), "/elsewhere/data")
        assert np.array_equal(elsewhere.set_aside(0.1)[1].chosen, aside.chosen)

    def test_images_that_have_bytes_only(self) -> None:
        rows = datasets.Dataset.from_dict({"image": [{"bytes": b"x"}] * 20})
        assert len(ImageDataset(rows, "image", None, (), "source").set_aside(0.1)[1]) == 2

    def test_images_without_names_are_set_aside(self, many: ImageDataset) -> None:
        pixels = datasets.Dataset.from_dict({"image": [np.zeros((4, 4), np.uint8)] * 20})
        for images in (many, ImageDataset(pixels, "image", None, (), "source")):
            rest, aside = images.share(0.5, 0).set_aside(0.25)
            assert len(rest) == pytest.approx(3 * len(aside), abs=3)
            assert not set(rest.chosen) & set(aside.chosen)

    @pytest.mark.parametrize("fraction", [0.0, -0.5, 1.5, float("nan")])
    def test_no_share(self, many: ImageDataset, fraction: float) -> None:
        with pytest.raises(UsageError, match=f"is {fraction}; expected above 0"):
            many.share(fraction, 0)


@pytest.mark.parametrize(("splits", "has"), [(("train", "valid"), True), (("train", "dev"), False), ((), False)])
def test_a_split_to_evaluate(splits: tuple[str, ...], has: bool) -> None:
    assert ImageDataset([], "image", None, (), "source", splits=splits).has_evaluation_split == has


class TestLabels:
    @pytest.mark.parametrize(("classes", "wrong"), [(2, 2), (1, 2)])
    def test_without_a_class(self, many: ImageDataset, classes: int, wrong: int) -> None:
        many.check_labels(3)
        with pytest.raises(UsageError, match=f"has a label {wrong}, but there are {classes} classes"):
            many.check_labels(classes)

    def test_kept_secret(self) -> None:
        rows = datasets.Dataset.from_dict({"image": [b""] * 2, "label": [-1, -1]})
        with pytest.raises(UsageError, match="has a label -1"):
            ImageDataset(rows, "image", "label", (), "source").check_labels(3)


class TestSeveralLabels:
    @pytest.fixture
    def tagged(self) -> ImageDataset:
        """A hundred samples of class 0, of which ten also have class 1; two of class 2 alone, three without labels."""
        lists = [[0, 1]] * 10 + [[0]] * 90 + [[2]] * 2 + [[]] * 3
        rows = datasets.Dataset.from_dict({"image": [b""] * 105, "label": lists})
        return ImageDataset(rows, "image", "label", (), "source", several=True)

    def test_labels(self, tagged: ImageDataset) -> None:
        assert np.bincount(tagged.labels()).tolist() == [100, 10, 2]
        tagged.check_labels(3)
        with pytest.raises(UsageError, match="has a label 2, but there are 2 classes"):
            tagged.check_labels(2)

    def test_the_rarest_label_decides_a_share(self, tagged: ImageDataset) -> None:
        assert tagged.strata().tolist() == [1] * 10 + [0] * 90 + [2] * 2 + [-1] * 3
        part = tagged.share(0.1, 0)
        assert sorted(sample.label for sample in part) == [(), *[(0,)] * 9, (0, 1), (2,)]

    def test_no_label_at_all(self) -> None:
        rows = datasets.Dataset.from_dict({"image": [b""] * 2, "label": [[], []]})
        with pytest.raises(UsageError, match="source has no label in the column 'label'"):
            ImageDataset(rows, "image", "label", (), "source", several=True).check_labels(3)
