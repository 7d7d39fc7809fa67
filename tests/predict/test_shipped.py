"""What the package contains: the model as users load it, and the photographs with their sources."""

import csv
import re
import string
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

from swinv2 import Swinv2ForImageClassification
from swinv2.errors import UsageError
from swinv2.loading import label_names, read_config
from swinv2.predict import shipped
from swinv2.predict.predictor import BrokenImage, Classifier
from swinv2.predict.shipped import Photograph, count_right, shipped_model, shipped_photographs

CLASSES = Path(__file__).parents[2] / "scripts" / "tiny_imagenet.csv"
FREE = {"MIT", "Apache-2.0", "CC0-1.0", "CC-BY-2.0", "public domain"}


@torch.no_grad()
def test_transformers_gives_the_same_logits() -> None:
    """transformers gives NaN for a position bias that was learned in a window of one token."""
    ours, theirs = (
        kind.from_pretrained(shipped_model()).eval()
        for kind in (Swinv2ForImageClassification, transformers.Swinv2ForImageClassification)
    )
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(images).logits, theirs(images).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [Swinv2ForImageClassification, AutoModelForImageClassification])
def test_the_model_is_loaded_in_fp32(kind: type) -> None:
    """The file has 16 bits, but config.json asks for float32, here and in transformers."""
    model = kind.from_pretrained(shipped_model())
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    assert AutoImageProcessor.from_pretrained(shipped_model()).size["height"] == model.config.image_size


def test_the_model_is_small_enough_for_the_package() -> None:
    """At most 16 MB, with the photographs."""
    assert sum(path.stat().st_size for path in shipped_model().rglob("*") if path.is_file()) < 16e6


def test_labels_are_two_hundred_names_in_plain_english() -> None:
    """They are those of the script that makes the data, each one once, and none is WordNet's number."""
    labels = label_names(read_config(str(shipped_model())))
    with CLASSES.open(newline="") as file:
        assert labels == [row["name"] for row in csv.DictReader(file)]
    assert len(set(labels)) == 200
    assert all(set(label) <= {*string.ascii_letters, *" -'()"} for label in labels)
    # Names with two meanings, of which the first that comes to mind is wrong.
    assert not {"walking stick", "brass", "crane", "chest", "drumstick", "plate", "organ", "tabby"} & set(labels)


def test_photographs_are_large_and_may_be_shipped() -> None:
    """Twenty files of at least 200 pixels a side, each in the table with source, author and a free licence."""
    photographs, labels = shipped_photographs(), label_names(read_config(str(shipped_model())))
    assert len(photographs) == 20
    assert {each.path for each in photographs} == set((shipped_model() / "samples").glob("*.jpg"))
    assert len({each.path for each in photographs}) == len({each.shows for each in photographs}) == 20
    for each in photographs:
        with Image.open(each.path) as image:
            assert min(image.size) >= 200, each.path.name
        assert each.label is None or each.label in labels, each.path.name
        assert "," in each.source, each.path.name
        assert each.author, each.path.name
        assert each.licence in FREE, each.path.name
    assert sum(each.label is not None for each in photographs) == 12


def test_the_card_says_how_many_photographs_are_right() -> None:
    photographs = shipped_photographs()
    answers = Classifier.load(str(shipped_model()), "cpu").classify([each.path for each in photographs])
    found: list[list[str]] = []
    for _, labels in answers:
        assert not isinstance(labels, BrokenImage)
        found.append([each.label for each in labels])
    card = " ".join((shipped_model() / "README.md").read_text().split())
    stated = re.search(r"(\d+) of (\d+) are right, (\d+) among the five .* the other (\d+) show", card)
    assert stated is not None
    counts = count_right(photographs, found)
    assert list(map(int, stated.groups())) == [counts.right, 12, counts.among, counts.unjudged]


def test_a_photograph_without_a_label_is_neither_right_nor_wrong() -> None:
    one = Photograph(Path("a.jpg"), "a cat", "tabby cat", "somewhere", "somebody", "MIT")
    other = Photograph(Path("b.jpg"), "a tree", None, "somewhere", "somebody", "MIT")
    assert [one.is_right("tabby cat"), one.is_right("lion"), other.is_right("lion")] == [True, False, None]


def test_right_answers_are_counted_among_photographs_with_a_label() -> None:
    cat, dog, tree = (
        Photograph(Path("a.jpg"), f"a {label}", label, "somewhere", "somebody", "MIT") for label in ("cat", "dog", None)
    )
    counts = count_right([cat, dog, cat, tree], [["cat", "dog"], ["cat", "dog"], ["dog", "owl"], ["owl", "cat"]])
    assert counts == (1, 2, 3, 1)


def test_an_installation_without_them_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    for find in (shipped_model, shipped_photographs):
        with pytest.raises(UsageError, match="reinstall"):
            find()
