"""Features of a data set: those of the model, computed once, and never those of something else."""

import os
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch

import peers
from colours import MODEL, draw_colours
from swinv2 import Swinv2Config, Swinv2Model
from swinv2.errors import UsageError
from swinv2.images import read_image
from swinv2.loading import hash_weights
from swinv2.train import features as features_module
from swinv2.train.data.augment import Pixels, for_evaluation
from swinv2.train.data.dataset import ImageDataset
from swinv2.train.data.sources import open_dataset
from swinv2.train.features import Features, FeatureStore, collect_features, read_features

PREPARE = for_evaluation(Pixels((32, 32), (0.5,) * 3, (0.5,) * 3))


def make_model(**fields: Any) -> Swinv2Model:
    return peers.draw_weights(Swinv2Model(Swinv2Config(**(MODEL | fields)))).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Nine images; the second one is broken."""
    draw_colours(tmp_path / "data", 3)
    (tmp_path / "data" / "blue" / "1.png").write_text("broken")
    return tmp_path / "data"


def compute(store: FeatureStore, dataset: ImageDataset, **rest: Any) -> tuple[Features, list[tuple[int, int]]]:
    """The features, and the progress that was reported."""
    told: list[tuple[int, int]] = []
    found = store.features_of(dataset, batch_size=4, workers=0, advance=lambda *done: told.append(done), **rest)
    return found.readable(), told


def test_they_are_the_pooled_output_of_the_model(folder: Path) -> None:
    model, dataset = make_model(), open_dataset(str(folder), "train")
    done: list[int] = []
    found = collect_features(read_features(model, dataset, PREPARE, 4, 0), done.append)
    assert done == [4, 8, 9]
    assert found.labels.tolist() == [0, -100, 0, 1, 1, 1, 2, 2, 2]
    assert [name.partition(":")[0] for name in found.broken] == [str(folder / "blue" / "1.png")]
    image = read_image(folder / "red" / "0.png")
    with torch.inference_mode():
        expected = model(PREPARE(image)[None]).pooler_output[0]
    torch.testing.assert_close(found.readable().values[5], expected)
    assert found.readable().labels.tolist() == [0, 0, 1, 1, 1, 2, 2, 2]


def test_processes_that_read_change_nothing(folder: Path) -> None:
    model, dataset = make_model(), open_dataset(str(folder), "train")
    here, there = (
        collect_features(read_features(model, dataset, PREPARE, 4, workers), lambda done: None) for workers in (0, 1)
    )
    assert torch.equal(here.readable().values, there.readable().values)
    assert here.broken == there.broken


def test_features_that_are_nan_are_an_error(folder: Path) -> None:
    model = make_model()
    model.layernorm.weight.data[0] = torch.nan
    with pytest.raises(UsageError, match="are NaN or infinite; its weights are damaged, or float32 is too small"):
        list(read_features(model, open_dataset(str(folder), "train"), PREPARE, 4, 0))


def test_a_second_run_computes_only_what_is_missing(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, dataset = FeatureStore(tmp_path / "kept", make_model(), PREPARE, {}), open_dataset(str(folder), "train")
    share = dataset.share(0.34, 0)
    few, told = compute(store, share)
    assert (len(share), told[-1]) == (3, (3, 3))
    assert "were computed before" not in caplog.text
    broken: list[str] = []
    every, told = compute(store, dataset, note_broken=broken.extend)
    assert told[-1] == (6 + len(few.broken), 6 + len(few.broken))
    assert f"features of {len(few.labels)} of 9 images of {folder} were computed before" in caplog.text
    assert broken == every.broken
    assert every.labels.tolist() == [0, 0, 1, 1, 1, 2, 2, 2]
    # In the order of the data set, whatever was computed first.
    whole = collect_features(read_features(store.model, dataset, PREPARE, 4, 0), lambda done: None).readable()
    torch.testing.assert_close(every.values, whole.values)
    # Only the unreadable image is read again, by a new process too.
    again, told = compute(FeatureStore(tmp_path / "kept", make_model(), PREPARE, {}), dataset)
    assert told == [(1, 1)]
    assert torch.equal(again.values, every.values)
    assert len(again.broken) == 1
    again, told = compute(store, share)
    assert torch.equal(again.values, few.values)


@pytest.mark.parametrize("changed", ["weights", "size", "windows", "transform", "split", "images", "column"])
def test_features_of_something_else_are_not_used(changed: str, folder: Path, tmp_path: Path) -> None:
    model, dataset = make_model(), open_dataset(str(folder), "train")
    before = FeatureStore(tmp_path / "kept", model, PREPARE, {"size": 32}).file_of(dataset)
    about = {"size": 32}
    if changed == "weights":
        model.layernorm.bias.data[0] += 1e-6
    elif changed == "size":
        model.set_image_size(64)
    elif changed == "windows":
        model.set_image_size(32, 8)
    elif changed == "transform":
        about = {"size": 48}
    elif changed == "images":
        file = folder / "red" / "0.png"
        time, size = file.stat().st_mtime_ns, file.stat().st_size
        file.write_bytes(file.read_bytes()[::-1])
        os.utime(file, ns=(time, time + 1))
        assert file.stat().st_size == size
    elif changed == "split":
        draw_colours(tmp_path / "other", 3)
        dataset = open_dataset(str(tmp_path / "other"), "train")
    else:
        dataset = ImageDataset(dataset.rows.rename_column("image", "img"), "img", "label", dataset.names, "x")
    assert FeatureStore(tmp_path / "kept", model, PREPARE, about).file_of(dataset) != before


def test_the_head_and_the_seed_change_nothing(folder: Path, tmp_path: Path) -> None:
    dataset = open_dataset(str(folder), "train")
    files = {
        FeatureStore(tmp_path, make_model(num_labels=labels), PREPARE, {}).file_of(dataset.share(0.5, seed))
        for labels, seed in ((2, 0), (3, 1))
    }
    assert len(files) == 1


def test_rows_that_only_name_their_files(tmp_path: Path) -> None:
    """The fingerprint of `datasets` does not change with the files, their times do."""
    draw_colours(tmp_path, 1)
    file = tmp_path / "red" / "0.png"
    for features in ({"image": datasets.Image(decode=False)}, {"image": datasets.Value("string")}):
        columns = {"image": [str(file), str(tmp_path / "missing.png")]}
        rows = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
        dataset = ImageDataset(rows, "image", None, (), "x")
        store = FeatureStore(tmp_path, make_model(), PREPARE, {})
        before = store.file_of(dataset)
        assert store.file_of(dataset) == before
        os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
        assert store.file_of(dataset) != before
    arrays = datasets.Dataset.from_dict({"image": np.zeros((2, 4, 4, 3), np.uint8)})
    assert FeatureStore(tmp_path, make_model(), PREPARE, {}).file_of(ImageDataset(arrays, "image", None, (), "x"))


def test_a_killed_run_has_lost_little(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features_module, "SECONDS_BETWEEN_SAVES", -1.0)
    store, dataset = FeatureStore(tmp_path / "kept", make_model(), PREPARE, {}), open_dataset(str(folder), "train")

    def stop(done: int, total: int) -> None:
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.features_of(dataset, batch_size=4, workers=0, advance=stop)
    # The first four, of which one is unreadable.
    assert len(store.missing(dataset)) == 9 - 3


def test_images_that_change_meanwhile(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All is stored in the file that was found at the beginning; the next run computes all anew."""
    monkeypatch.setattr(features_module, "SECONDS_BETWEEN_SAVES", -1.0)
    store, dataset = FeatureStore(tmp_path / "kept", make_model(), PREPARE, {}), open_dataset(str(folder), "train")
    file = store.file_of(dataset)

    def change(done: int, total: int) -> None:
        os.utime(folder / "red" / "0.png", ns=(0, done))

    store.features_of(dataset, batch_size=4, workers=0, advance=change)
    assert list((tmp_path / "kept").iterdir()) == [file]
    assert len(store.missing(dataset)) == 9


def test_a_damaged_file_is_named(folder: Path, tmp_path: Path) -> None:
    store, dataset = FeatureStore(tmp_path / "kept", make_model(), PREPARE, {}), open_dataset(str(folder), "train")
    file = store.file_of(dataset)
    file.parent.mkdir()
    file.write_text("")
    with pytest.raises(UsageError, match=rf"the features in {file} cannot be read: .*; delete the file"):
        compute(store, dataset)


def test_the_hash_sees_every_kind_of_weight() -> None:
    hashes = {hash_weights(make_model().to(dtype)) for dtype in (torch.float32, torch.bfloat16, torch.float16)}
    assert len(hashes) == 3
