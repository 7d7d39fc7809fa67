"""The class of each pixel, names of classes, and shares of images with masks."""

import io
import pickle

import datasets
import numpy as np
import pytest
from PIL import Image

from swinv2.errors import UsageError
from swinv2.train.data.dataset import ImageDataset
from swinv2.train.data.masks.dataset import (
    IGNORED_PIXEL,
    NO_VALUE,
    MaskDataset,
    MaskedImage,
    check_size,
    scan_values,
)


def sample_of(mask: str | bytes | np.ndarray) -> MaskedImage:
    return MaskedImage(b"", mask, "a.jpg", "a.png")


def dataset_of(names: tuple[str, ...] = ("a", "b"), count: int = 1, **fields: object) -> MaskDataset:
    """Rows whose masks have the values 0 and 1."""
    file = io.BytesIO()
    Image.fromarray(np.array([[0, 1, 1]], np.uint8)).save(file, "PNG")
    columns = {"image": [f"{index}.jpg" for index in range(count)], "mask": [file.getvalue()] * count}
    images = ImageDataset(datasets.Dataset.from_dict(columns), "image", None, (), "data", "train", ("train", "test"))
    values = tuple(range(len(names)))
    return MaskDataset(images, "mask", names, **{"values": values, **fields})  # type: ignore[arg-type]


class TestClasses:
    def test_ignored_values_and_labels_from_1(self) -> None:
        stored = sample_of(np.array([[0, 1, 3, 9]]))
        plain = dataset_of(("a", "b", "c", "d"), ignore_index=9)
        assert plain.read_mask(stored).tolist() == [[0, 1, 3, IGNORED_PIXEL]]
        assert plain.read_mask(stored).dtype == np.uint8
        reduced = dataset_of(("a", "b", "c"), values=(1, 2, 3), ignore_index=9, reduce_labels=True)
        assert reduced.read_mask(stored).tolist() == [[IGNORED_PIXEL, 0, 2, IGNORED_PIXEL]]
        binary = dataset_of(values=(0, 255), ignore_index=NO_VALUE)
        assert binary.read_mask(sample_of(np.array([[255, 0]], np.uint8))).tolist() == [[1, 0]]

    def test_254_is_a_class_like_others(self) -> None:
        many = dataset_of(tuple(map(str, range(255))))
        assert many.read_mask(sample_of(np.array([[0, 254, 255]]))).tolist() == [[0, 254, 255]]
        with pytest.raises(UsageError, match="data has 256 classes; expected at most 255"):
            dataset_of(tuple(map(str, range(256))))

    @pytest.mark.parametrize("value", [7, 65535, -3])
    def test_a_value_that_is_no_class_is_named(self, value: int) -> None:
        with pytest.raises(UsageError) as error:
            dataset_of().read_mask(sample_of(np.array([[0, value, value, 1, 255]])))
        assert f"a.png has the value {value} in 2 pixels; expected 0 to 1, or 255 for pixels" in str(error.value)
        assert all(flag in str(error.value) for flag in ("--ignore-index", "--reduce-labels", "--label-names-file"))

    def test_two_classes_of_one_name(self) -> None:
        with pytest.raises(UsageError, match="data has several classes with the name 'a'"):
            dataset_of(("a", "b", "a"))

    def test_another_order_is_renumbered(self) -> None:
        found = dataset_of(("a", "b", "c")).with_names(("c", "a", "b"), "the model")
        assert found.names == ("c", "a", "b")
        assert found.read_mask(sample_of(np.array([[0, 1, 2, 255]]))).tolist() == [[1, 2, 0, IGNORED_PIXEL]]
        again = found.with_names(("b", "c", "a"), "the model")
        assert again.read_mask(sample_of(np.array([[0, 1, 2, 255]]))).tolist() == [[2, 0, 1, IGNORED_PIXEL]]

    def test_numbers_match_by_order(self, warnings: pytest.LogCaptureFixture) -> None:
        assert dataset_of(("0", "1")).with_names(("cat", "dog"), "the model").names == ("cat", "dog")
        assert "data has the classes '0', '1', the model 'cat', 'dog'; they are matched" in warnings.text
        assert dataset_of(("cat", "dog")).with_names(("0", "1"), "the model").names == ("0", "1")

    def test_a_missing_and_an_extra_class_are_named(self) -> None:
        with pytest.raises(UsageError, match="data lacks the classes 'c'"):
            dataset_of().with_names(("a", "b", "c"), "the model")
        with pytest.raises(UsageError, match="the model lacks the classes 'b'"):
            dataset_of().with_names(("a",), "the model")
        with pytest.raises(UsageError, match="data lacks the classes 'cat', 'dog', 'fly'"):
            dataset_of(("0", "1")).with_names(("cat", "dog", "fly"), "the model")


class TestDataset:
    def test_pixels_are_counted_and_progress_is_told(self, warnings: pytest.LogCaptureFixture) -> None:
        told: list[tuple[int, int]] = []
        counts = dataset_of(count=3).count_pixels(lambda done, total: told.append((done, total)))
        assert counts.tolist() == [3, 6]
        assert counts.dtype == np.int64
        assert told == [(1, 3), (2, 3), (3, 3)]
        assert warnings.text == ""

    def test_values_are_scanned_and_unreadable_masks_are_named(self, warnings: pytest.LogCaptureFixture) -> None:
        good = dataset_of(count=2)
        rows = datasets.Dataset.from_dict({"image": ["x.jpg", "y.jpg"], "mask": [b"", good[0].mask]})
        images = ImageDataset(rows, "image", None, (), "other")
        found = scan_values([MaskDataset(images, "mask"), good])
        assert found == {0: "other[1] (mask)", 1: "other[1] (mask)"}
        assert "masks that cannot be read are left out: other[0] (mask): the file is empty" in warnings.text

    def test_samples_have_names(self) -> None:
        found = dataset_of(count=2)
        assert [(sample.image, sample.name, sample.mask_name) for sample in found] == [
            ("0.jpg", "data[0]", "data[0] (mask)"),
            ("1.jpg", "data[1]", "data[1] (mask)"),
        ]
        assert (found.source, found.split, found.splits, found.has_evaluation_split) == (
            "data",
            "train",
            ("train", "test"),
            True,
        )

    def test_shares_keep_masks_beside_their_images(self) -> None:
        masks = [np.full((1, 1), index, np.uint8).tolist() for index in range(40)]
        rows = datasets.Dataset.from_dict({"image": [f"{index}.jpg" for index in range(40)], "mask": masks})
        images = ImageDataset(rows, "image", None, (), "data")
        found = MaskDataset(images, "mask", tuple(map(str, range(40))), tuple(range(40)))
        rest, aside = found.set_aside(0.25)
        assert (len(rest), len(aside)) == (30, 10)
        assert {sample.image for sample in rest} | {sample.image for sample in aside} == {s.image for s in found}
        for part in (rest, aside, found.share(0.5, 3)):
            assert all(f"{part.read_mask(sample).item()}.jpg" == sample.image for sample in part)
        # The choice depends on names, not on the order.
        turned = MaskDataset(
            ImageDataset(rows.select(range(39, -1, -1)), "image", None, (), "data"), "mask", found.names, found.values
        )
        assert {sample.image for sample in turned.set_aside(0.25)[1]} == {sample.image for sample in aside}
        half, quarter = ({sample.image for sample in found.share(part, 3)} for part in (0.5, 0.25))
        assert quarter < half
        assert (len(quarter), len(half)) == (10, 20)

    def test_workers_get_a_copy(self) -> None:
        found = dataset_of(colours={0x000000: 0, 0x010101: 1})
        copy = pickle.loads(pickle.dumps(found))
        assert copy.read_mask(copy[0]).tolist() == found.read_mask(found[0]).tolist() == [[0, 1, 1]]

    def test_sizes_that_differ(self) -> None:
        check_size((4, 6), (4, 6), sample_of(b""))
        with pytest.raises(UsageError, match=r"a\.png has 4 x 6 pixels, its image a\.jpg has 6 x 4.*upright"):
            check_size((4, 6), (6, 4), sample_of(b""))
