"""The fit of a linear classifier is the optimum, and held-out images choose its penalty."""

from typing import Any

import numpy as np
import pytest
import torch

from swinv2.train import linear
from swinv2.train.features import Features
from swinv2.train.linear import (
    FOLDS,
    PENALTIES,
    USUAL_PENALTY,
    Classifier,
    choose_penalty,
    divide_into_folds,
    fit_classifier,
    fit_to_features,
)


def draw_features(count: int, channels: int = 5, classes: int = 3, noise: float = 1.5) -> Features:
    """Noisy features around a centre for each class; one channel has a large mean and scale, one is constant."""
    draw = np.random.default_rng(0)
    labels = draw.integers(0, classes, count)
    values = draw.normal(size=(classes, channels))[labels] + noise * draw.normal(size=(count, channels))
    values[:, 0] = 300 + 50 * values[:, 0]
    values[:, 1] = 0.1
    return Features(torch.tensor(values, dtype=torch.float32), torch.tensor(labels), [])


def gradient(
    classifier: Classifier, inputs: np.ndarray, labels: np.ndarray, weights: np.ndarray, penalty: float
) -> tuple[np.ndarray, np.ndarray]:
    """The gradient of the mean cross entropy + penalty / 2 * sum(weight ** 2), as in a textbook."""
    weight, bias = classifier.weight.numpy(), classifier.bias.numpy()
    logits = inputs @ weight.T + bias
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    errors = (probabilities - np.eye(len(bias))[labels]) * (weights / weights.sum())[:, None]
    return errors.T @ inputs + penalty * weight, errors.sum(0)


@pytest.mark.parametrize("logits_at_once", [2**24, 100])
@pytest.mark.parametrize("penalty", [1.0, 1e-3])
def test_the_fit_is_the_optimum(penalty: float, logits_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "_LOGITS_AT_ONCE", logits_at_once)
    monkeypatch.setattr(linear, "TOLERANCE", 1e-7)
    draw = np.random.default_rng(0)
    inputs, labels = draw.normal(size=(200, 5)), draw.integers(0, 3, 200)
    counts = draw.random(200)
    start = Classifier(torch.ones(3, 5, dtype=torch.float64), torch.ones(3, dtype=torch.float64))
    found = fit_classifier(torch.tensor(inputs), torch.tensor(labels), torch.tensor(counts), penalty, start)
    assert found.weight.abs().max() > 0.01
    # The loss is convex, so where its gradient is zero is the optimum.
    for part in gradient(found, inputs, labels, counts, penalty):
        assert np.abs(part).max() < 2e-6
    # The start is not changed.
    assert torch.equal(start.weight, torch.ones(3, 5, dtype=torch.float64))


def test_standardisation_is_folded_into_the_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "TOLERANCE", 1e-7)
    features = draw_features(300)
    found, penalty, _ = fit_to_features(features, 3)
    values = features.values.double().numpy()
    deviations = values.std(0)
    deviations[1] = 1.0
    inputs = (values - values.mean(0)) / deviations
    standardised = Classifier(
        found.weight * torch.tensor(deviations), found.bias + found.weight @ torch.tensor(values.mean(0))
    )
    for part in gradient(standardised, inputs, features.labels.numpy(), np.ones(300), penalty):
        assert np.abs(part).max() < 1e-5
    # The channel that never changes says nothing.
    assert found.weight[:, 1].abs().max() < 1e-6


def test_weights_count_as_copies_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "TOLERANCE", 1e-7)
    features = draw_features(60)
    counts = torch.tensor([1, 2, 3])[features.labels]
    inputs = features.values.double()[:, 2:]
    start = Classifier(torch.zeros(3, 3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))
    weighted = fit_classifier(inputs, features.labels, counts.double(), 0.01, start)
    copies = inputs.repeat_interleave(counts, 0), features.labels.repeat_interleave(counts)
    copied = fit_classifier(*copies, torch.ones(len(copies[0]), dtype=torch.float64), 0.01, start)
    torch.testing.assert_close(weighted.weight, copied.weight, atol=1e-4, rtol=1e-4)


def test_folds_divide_every_class() -> None:
    labels = np.array([0] * 40 + [1] * 25 + [2] * 3 + [3])
    folds = divide_into_folds(labels, 0)
    for label, least, most in ((0, 4, 4), (1, 2, 3), (2, 0, 1)):
        counts = np.bincount(folds[labels == label], minlength=FOLDS)
        assert (counts.min(), counts.max()) == (least, most)
    # Without its only image, a class could not be learned.
    assert folds[-1] == -1
    assert (divide_into_folds(labels, 0) == folds).all()
    assert (divide_into_folds(labels, 1) != folds).any()


@pytest.mark.parametrize(("noise", "weakest", "strongest"), [(0.1, 1e-5, 1e-4), (30.0, 0.1, 10.0)])
def test_noise_needs_a_strong_penalty(noise: float, weakest: float, strongest: float) -> None:
    features = draw_features(120, noise=noise)
    chosen, losses = fit_to_features(features, 3)[1:]
    assert weakest * 0.99 <= chosen <= strongest
    assert losses[chosen] == min(losses.values())
    # The search ends after two that are worse.
    assert list(losses) == list(PENALTIES[: len(losses)])
    assert len(losses) in (len(PENALTIES), PENALTIES.index(chosen) + 3)


@pytest.mark.parametrize(("enough", "folds"), [(1000, 10), (25, 3), (1, 1)])
def test_many_images_need_few_folds(enough: int, folds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    features = draw_features(100)
    monkeypatch.setattr(linear, "ENOUGH_HELD_OUT", enough)
    sizes: list[int] = []

    def note(inputs: torch.Tensor, *rest: Any) -> Classifier:
        sizes.append(len(inputs))
        return fit_classifier(inputs, *rest)

    monkeypatch.setattr(linear, "fit_classifier", note)
    told: list[None] = []
    inputs = features.values.double()[:, 2:]
    _, losses = choose_penalty(inputs, features.labels, torch.ones(100).double(), 3, 0, lambda: told.append(None))
    assert len(sizes) == folds * len(losses)
    assert all(87 <= size <= 93 for size in sizes)
    assert len(told) == len(losses)


def test_a_single_image_of_each_class(caplog: pytest.LogCaptureFixture) -> None:
    features = Features(torch.eye(3), torch.arange(3), [])
    found, penalty, losses = fit_to_features(features, 3)
    assert (penalty, losses) == (USUAL_PENALTY, {})
    assert "every class has a single image" in caplog.text
    assert (torch.eye(3).double() @ found.weight.T + found.bias).argmax(1).tolist() == [0, 1, 2]


def test_features_that_say_nothing() -> None:
    found, _, _ = fit_to_features(Features(torch.ones(20, 4), torch.arange(20) % 2, []), 2)
    assert found.weight.abs().max() == 0.0


# The whole way
