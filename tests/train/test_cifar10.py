"""CIFAR-10 from each place it can lie in: the same pictures and labels, or a sentence."""

import pickle

import numpy as np
import pytest
from PIL import Image

from swinv2.train import cifar10

TRAIN, TEST = 50, 20


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch):
    """A data set of seventy images: sheets of 2 x 5 images, five for training and two for the test."""
    monkeypatch.setattr(cifar10, "TRAIN_SIZE", TRAIN)
    monkeypatch.setattr(cifar10, "TEST_SIZE", TEST)
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (TRAIN + TEST, 32, 32, 3), dtype=np.uint8)
    labels = draw.integers(0, 10, TRAIN + TEST, dtype=np.uint8)
    return images, labels


def write_sheets(folder, images, labels, monkeypatch):
    """Lossless sheets of side 4 hold 16 images each; five of them for training, one for the test."""
    monkeypatch.setattr(cifar10, "SHEET_SIDE", 4)
    monkeypatch.setattr(cifar10, "TRAIN_SIZE", 80)
    monkeypatch.setattr(cifar10, "TEST_SIZE", 16)
    for index in range(6):
        tiles = images[16 * index : 16 * index + 16].reshape(4, 4, 32, 32, 3)
        sheet = tiles.transpose(0, 2, 1, 3, 4).reshape(128, 128, 3)
        Image.fromarray(sheet).save(folder / f"cifar10_{index}.webp", lossless=True)
    np.savez(folder / "cifar10_labels.npz", ytr=labels[:80], yte=labels[80:96])


def test_sheets(tmp_path, monkeypatch):
    draw = np.random.default_rng(1)
    images = draw.integers(0, 256, (96, 32, 32, 3), dtype=np.uint8)
    labels = draw.integers(0, 10, 96)
    write_sheets(tmp_path, images, labels, monkeypatch)
    train, test = cifar10.load_cifar10(tmp_path, train=True), cifar10.load_cifar10(tmp_path, train=False)
    assert np.array_equal(train.images, images[:80])
    assert np.array_equal(train.labels, labels[:80])
    assert np.array_equal(test.images, images[80:])
    assert np.array_equal(test.labels, labels[80:])


def test_torchvision_folder(few, tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    images, labels = few
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    parts = {f"data_batch_{index + 1}": slice(10 * index, 10 * index + 10) for index in range(5)}
    for name, part in {**parts, "test_batch": slice(TRAIN, TRAIN + TEST)}.items():
        rows = images[part].transpose(0, 3, 1, 2).reshape(-1, 3072)
        (folder / name).write_bytes(pickle.dumps({"data": rows, "labels": labels[part].tolist()}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list(cifar10.LABELS)}))
    # The checksums are those of the real files.
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *arguments: True)
    train, test = cifar10.load_cifar10(tmp_path, train=True), cifar10.load_cifar10(tmp_path, train=False)
    assert np.array_equal(train.images, images[:TRAIN])
    assert np.array_equal(train.labels, labels[:TRAIN])
    assert np.array_equal(test.images, images[TRAIN:])
    assert np.array_equal(test.labels, labels[TRAIN:])


def test_datasets_folder(few, tmp_path):
    datasets = pytest.importorskip("datasets")
    images, labels = few
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=list(cifar10.LABELS))})

    def part(chosen):
        rows = {"img": [Image.fromarray(image) for image in images[chosen]], "label": labels[chosen].tolist()}
        return datasets.Dataset.from_dict(rows, features=features)

    both = {"train": part(slice(0, TRAIN)), "test": part(slice(TRAIN, None))}
    datasets.DatasetDict(both).save_to_disk(str(tmp_path / "saved"))
    train = cifar10.load_cifar10(tmp_path / "saved", train=True)
    test = cifar10.load_cifar10(tmp_path / "saved", train=False)
    assert np.array_equal(train.images, images[:TRAIN])
    assert np.array_equal(test.images, images[TRAIN:])
    assert np.array_equal(test.labels, labels[TRAIN:])


def test_a_folder_of_something_else_is_named(tmp_path):
    with pytest.raises(ValueError, match="holds no CIFAR-10"):
        cifar10.load_cifar10(tmp_path, train=True)


def test_half_a_data_set_is_named(tmp_path, monkeypatch):
    images = np.zeros((96, 32, 32, 3), dtype=np.uint8)
    write_sheets(tmp_path, images, np.zeros(96, dtype=np.int64), monkeypatch)
    monkeypatch.setattr(cifar10, "TRAIN_SIZE", 50_000)
    with pytest.raises(ValueError, match="expected 50000 images"):
        cifar10.load_cifar10(tmp_path, train=True)
