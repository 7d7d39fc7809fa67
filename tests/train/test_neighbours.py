"""Nearest neighbours against brute force, with ties; and the evaluation of models without a classifier."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch

import peers
import swinv2
from colours import MODEL, draw_colours
from commands import swinv2_command
from swinv2.errors import UsageError
from swinv2.train import neighbours
from swinv2.train.data.augment import Pixels, make_processor
from swinv2.train.neighbours import Bank, evaluate_neighbours, find_largest


def save_model(folder: Path, kind: Any = swinv2.Swinv2ForImageClassification, **fields: Any) -> str:
    """A small model of any head, with its image processor."""
    config = swinv2.Swinv2Config(**(MODEL | {"encoder_stride": 4, "num_labels": 7} | fields))
    peers.draw_weights(kind(config)).save_pretrained(folder)
    make_processor(Pixels((32, 32), (0.5,) * 3, (0.5,) * 3)).save_pretrained(folder)
    return str(folder)


def brute_force(
    bank: np.ndarray, labels: list[int], query: np.ndarray, number: int, classes: int, left_out: int | None
) -> np.ndarray:
    """The votes for each class, one query and one image of the bank at a time; of equal ones the first."""
    found = []
    for index, other in enumerate(bank):
        if index != left_out:
            cosine = float(other @ query) / float(np.linalg.norm(other) * np.linalg.norm(query))
            found.append((-cosine, index))
    votes = np.zeros(classes)
    for negative, index in sorted(found)[:number]:
        votes[labels[index]] += np.exp(-negative / 0.07)
    return votes


@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize("number", [1, 3, 8])
@pytest.mark.parametrize("at_once", [1, 2**24])
def test_votes_are_those_of_brute_force(
    leave_one_out: bool, number: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "_SIMILARITIES_AT_ONCE", at_once)
    # Entries of +-1 in four dimensions: all cosines are multiples of 1/2, exactly, and most are equal to others.
    draw = np.random.default_rng(0)
    values = draw.choice([-1.0, 1.0], (40, 4))
    labels = draw.integers(0, 6, 40).tolist()
    queries = values if leave_one_out else draw.choice([-2.0, 2.0], (30, 4))
    own = torch.arange(40) if leave_one_out else None
    bank = Bank(torch.tensor(values, dtype=torch.float32), torch.tensor(labels), 6)
    found = bank.votes(torch.tensor(queries, dtype=torch.float32), number, own)
    for index, query in enumerate(queries):
        expected = brute_force(values, labels, query, number, 6, index if leave_one_out else None)
        np.testing.assert_allclose(found[index].numpy(), expected, rtol=1e-6)


def test_of_equal_values_the_first() -> None:
    values = torch.tensor([[1.0, 5.0, 5.0, 2.0, 5.0], [3.0, 3.0, 3.0, 3.0, 4.0], [0.0, -torch.inf, 0.0, 0.0, 0.0]])
    assert find_largest(values, 2).tolist() == [[1, 2], [0, 4], [0, 2]]
    assert find_largest(values, 5).tolist() == [[0, 1, 2, 3, 4]] * 3


@pytest.mark.parametrize(
    "kind",
    [swinv2.Swinv2ForImageClassification, swinv2.Swinv2Model, swinv2.Swinv2ForMaskedImageModeling],
    ids=lambda kind: kind.__name__,
)
def test_models_of_any_head(kind: Any, colours: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    model = save_model(tmp_path / "model", kind)
    found, dataset = evaluate_neighbours(model, str(colours), workers=0, advance=lambda *done: told.append(done))
    assert told == [(36, 51), (51, 51)]
    assert found.names == ("blue", "green", "red")
    assert (found.images, found.neighbours, found.bank, found.leave_one_out) == (15, 20, 36, False)
    assert found.top1 > 0.6
    assert (found.top5, found.loss, found.unreadable) == (None, None, [])
    assert found.confusion.sum(1).tolist() == [5, 5, 5]
    assert found.summary() == json.loads(json.dumps(found.summary()))
    assert len(found.draw(dataset, tmp_path)) == 1 + bool(found.worst)


def save_split(data: Path, split: str, images: list[Path], labels: list[int], names: list[str] | None) -> None:
    """A split of a saved data set; each split has its own names, or numbers as labels."""
    label = datasets.ClassLabel(names=names) if names else datasets.Value("int64")
    features = datasets.Features({"image": datasets.Image(), "label": label})
    rows = datasets.Dataset.from_dict({"image": list(map(str, images)), "label": labels}, features=features)
    shutil.rmtree(data / split, ignore_errors=True)
    rows.save_to_disk(data / split)
    (data / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation"]}))


def test_the_only_split_is_its_own_bank(tmp_path: Path) -> None:
    draw_colours(tmp_path / "data", 3)
    (tmp_path / "data" / "green" / "1.png").write_text("broken")
    model = save_model(tmp_path / "model")
    found, _ = evaluate_neighbours(model, str(tmp_path / "data"), neighbours=100, batch_size=2, workers=0)
    # Eight readable images, seven others for each.
    assert (found.images, found.neighbours, found.bank, found.leave_one_out) == (8, 7, 8, True)
    assert len(found.unreadable) == 1
    assert found.confusion.sum(1).tolist() == [3, 2, 3]
    answer = swinv2_command("evaluate", tmp_path / "data", "--knn", "--model", model, "--workers", 0)
    assert answer.exit_code == 1
    assert "7 of 8 images, without the image itself" in answer.stdout
    assert "loss" not in answer.stdout


def test_an_image_never_votes_for_itself(tmp_path: Path) -> None:
    # Two classes with one image each: the other image is the only neighbour.
    draw_colours(tmp_path / "data", 1)
    (tmp_path / "data" / "red" / "0.png").unlink()
    (tmp_path / "data" / "red").rmdir()
    found, _ = evaluate_neighbours(save_model(tmp_path / "model"), str(tmp_path / "data"), "train", workers=0)
    assert (found.top1, found.neighbours) == (0.0, 1)
    assert [probability for *_, probability in found.worst] == [1.0, 1.0]


def test_a_single_image_has_no_neighbour(tmp_path: Path) -> None:
    draw_colours(tmp_path / "data", 1)
    for colour in ("red", "blue"):
        (tmp_path / "data" / colour / "0.png").write_text("broken")
    with pytest.raises(UsageError, match="has too few readable images for a neighbour; expected at least two"):
        evaluate_neighbours(save_model(tmp_path / "model"), str(tmp_path / "data"), "train", workers=0)


def test_classes_are_matched_by_name(colours: Path, tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    straight, _ = evaluate_neighbours(model, str(colours), workers=0)
    train, validation = (sorted((colours / split).glob("*/*.png")) for split in ("train", "validation"))
    here, there = ["blue", "green", "red"], ["red", "blue", "green"]
    save_split(tmp_path / "data", "train", train, [here.index(file.parent.name) for file in train], here)
    labels = [there.index(file.parent.name) for file in validation]
    save_split(tmp_path / "data", "validation", validation, labels, there)
    reordered, _ = evaluate_neighbours(model, str(tmp_path / "data"), workers=0)
    assert reordered.summary() == straight.summary()
    # Numbers have no names to be matched by.
    labels = [here.index(file.parent.name) for file in validation]
    save_split(tmp_path / "data", "validation", validation, labels, None)
    numbered, _ = evaluate_neighbours(model, str(tmp_path / "data"), workers=0)
    assert numbered.summary() == straight.summary()


def test_numbers_name_classes_without_names(colours: Path, tmp_path: Path) -> None:
    images = sorted((colours / "validation").glob("*/*.png"))
    for split in ("train", "validation"):
        save_split(tmp_path / "data", split, images, [index % 7 for index in range(15)], None)
    found, _ = evaluate_neighbours(save_model(tmp_path / "model"), str(tmp_path / "data"), neighbours=1, workers=0)
    assert found.names == tuple("0123456")
    # The same images in both splits: each finds itself. Only one class of five has a neighbour.
    assert (found.top1, found.top5) == (1.0, 1.0)
    assert found.worst == []


def test_classes_without_a_vote_are_not_among_the_best_five(tmp_path: Path) -> None:
    draw_colours(tmp_path / "images", 7)
    images = sorted((tmp_path / "images" / "red").glob("*.png"))
    save_split(tmp_path / "data", "train", images, list(range(7)), None)
    save_split(tmp_path / "data", "validation", images, [(index + 1) % 7 for index in range(7)], None)
    found, _ = evaluate_neighbours(save_model(tmp_path / "model"), str(tmp_path / "data"), neighbours=1, workers=0)
    assert (found.top1, found.top5) == (0.0, 0.0)


def test_a_class_without_neighbours_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("swinv2"), "propagate", True)
    draw_colours(tmp_path / "images", 2)
    images = sorted((tmp_path / "images" / "red").glob("*.png"))
    save_split(tmp_path / "data", "train", images, [0, 1], ["blue", "green"])
    save_split(tmp_path / "data", "validation", images, [0, 1], ["blue", "violet"])
    found, _ = evaluate_neighbours(save_model(tmp_path / "model"), str(tmp_path / "data"), workers=0)
    assert found.images == 1
    assert "that the split 'train' lacks; their images are left out of the evaluation: 'violet' (1)" in caplog.text


@pytest.mark.parametrize("split", ["evaluation", "validation", "train"])
def test_without_a_bank(split: str, tmp_path: Path) -> None:
    draw_colours(tmp_path / "data" / "validation", 2)
    model = save_model(tmp_path / "model")
    with pytest.raises(UsageError, match=r"data has only validation; give the folder or the files of one split"):
        evaluate_neighbours(model, str(tmp_path / "data"), split, workers=0)
    found, _ = evaluate_neighbours(model, str(tmp_path / "data" / "validation"), workers=0)
    assert (found.images, found.leave_one_out) == (6, True)
    # Other errors stay.
    with pytest.raises(UsageError, match="has no column 'photo'"):
        evaluate_neighbours(model, str(tmp_path / "data" / "validation"), image_column="photo")


def test_images_without_labels(tmp_path: Path) -> None:
    draw_colours(tmp_path / "data", 2)
    model = save_model(tmp_path / "model")
    with pytest.raises(UsageError, match="has no labels"):
        evaluate_neighbours(model, str(tmp_path / "data" / "red"), "train", workers=0)


def test_the_command(colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("swinv2"), "propagate", True)
    command = ["evaluate", colours, "--model", save_model(tmp_path / "model", swinv2.Swinv2Model), "--workers", 0]
    answer = swinv2_command(*command, "--knn", "--neighbours", 3, "--json", "--output", tmp_path)
    assert answer.exit_code == 0, answer.output
    found = json.loads(answer.stdout)
    assert (found["neighbours"], found["bank"], found["loss"]) == (3, 36, None)
    assert set(found["recall"]) == {"blue", "green", "red"}
    assert (tmp_path / "confusion.png").is_file()
    answer = swinv2_command(*command, "--neighbours", 3)
    assert answer.exit_code == 2
    assert "--neighbours has no effect without --knn" in answer.stderr


def test_several_labels_have_no_vote(colours: Path, tmp_path: Path) -> None:
    rows = {"image": [str(colours / "train" / "red" / "0.png")] * 2, "label": [["a"], ["a", "b"]]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Sequence(datasets.Value("string"))})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(UsageError, match=r"--knn is for images of one label, and .* has lists of labels"):
        evaluate_neighbours(save_model(tmp_path / "model"), str(tmp_path / "train.parquet"))


def test_one_channel(colours: Path, tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", num_channels=1)
    make_processor(Pixels((32, 32), (0.5,), (0.5,))).save_pretrained(model)
    assert evaluate_neighbours(model, str(colours), neighbours=3)[0].images == 15
