"""Names of ImageNet's classes, in the order of the scores."""

import pytest

from swinv2.convert.labels import published_names


def test_names_of_imagenet() -> None:
    """Of 22k in the authors' order: rows of their own map from 22k to 1k, data/map22kto1k.txt."""
    one, _ = published_names(1000)
    many, note = published_names(21841)
    assert one is not None
    assert many is not None
    assert (len(one), len(many)) == (1000, 21841)
    assert (one[0], one[388]) == (
        "tench, Tinca tinca",
        "giant panda, panda, panda bear, coon bear, Ailuropoda melanoleuca",
    )
    # Line of the map, counted from 0, and what is in it: before and after the classes that other lists do not have.
    for line, index in {717: 9204, 718: 9212, 719: 9221, 729: 9322, 999: 21817}.items():
        assert many[index] == one[line], line
    assert "the last 23 names may be off by two" in note
    assert published_names(10) == (None, "The names of its 10 classes are not known; the classes have numbers instead.")


def test_without_timm_classes_are_numbered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert published_names(1000)[0] is None
    assert "not installed" in published_names(1000)[1]
