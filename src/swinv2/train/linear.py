"""Multinomial logistic regression on features, with a penalty that held-out images choose.

In: features and labels. Out: a linear classifier, fitted by L-BFGS in fp64. Nothing is random but the division into
folds, which the seed decides. This module knows no model and no file.

Source: Kornblith et al., Do Better ImageNet Models Transfer Better?, 2019, appendix A.5.
"""

import logging
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from swinv2.train.features import Features

logger = logging.getLogger(__name__)

PENALTIES = tuple(10.0 ** (half / 2) for half in range(2, -11, -1))
"""L2 penalties to choose from, the strongest first: 10, 3.2, 1 ... 1e-5."""

USUAL_PENALTY = 1e-2
"""The penalty if no image can be held out, because each class has a single one."""

FOLDS = 10
ENOUGH_HELD_OUT = 1000
"""Folds are held out one after another until so many images were: one fold of many images, all folds of few."""

MOST_STEPS = 1000
TOLERANCE, LEAST_CHANGE = 1e-5, 1e-12
"""L-BFGS ends if no entry of the gradient is larger, or if the loss changes less."""

_LOGITS_AT_ONCE = 2**24


class Classifier(NamedTuple):
    """A linear classifier in fp64: weight (classes, channels) and bias (classes,)."""

    weight: Tensor
    bias: Tensor


def fit_classifier(inputs: Tensor, labels: Tensor, weights: Tensor, penalty: float, start: Classifier) -> Classifier:
    """Fits a multinomial logistic regression: minimises the mean cross entropy + penalty / 2 * sum(weight ** 2).

    Args:
        inputs: (images, channels), fp64.
        labels: (images,).
        weights: (images,), fp64: how much each image counts in the mean.
        penalty: Above 0; the bias has none.
        start: Where the search begins; the result does not depend on it.
    """
    weights = weights / weights.sum()
    # About the square root of the Hessian's diagonal. Divided by it, weights of all scales are found in few steps.
    scale = (inputs.square().mean(0) / len(start.bias) + penalty).sqrt()
    learning = Classifier((start.weight * scale).requires_grad_(), start.bias.clone().requires_grad_())
    optimiser = torch.optim.LBFGS(
        list(learning),
        max_iter=MOST_STEPS,
        max_eval=2 * MOST_STEPS,
        tolerance_grad=TOLERANCE,
        tolerance_change=LEAST_CHANGE,
        history_size=20,
        line_search_fn="strong_wolfe",
    )
    chunk = max(_LOGITS_AT_ONCE // len(start.bias), 1)

    def compute_loss() -> Tensor:
        """Loss and gradients, chunk by chunk."""
        optimiser.zero_grad()
        whole = penalty / 2 * (learning.weight / scale).square().sum()
        whole.backward()
        for part in zip(inputs.split(chunk), labels.split(chunk), weights.split(chunk), strict=True):
            loss = _weighted_loss(Classifier(learning.weight / scale, learning.bias), *part)
            loss.backward()
            whole = whole.detach() + loss.detach()
        return whole

    optimiser.step(compute_loss)
    return Classifier(learning.weight.detach() / scale, learning.bias.detach())


def _weighted_loss(classifier: Classifier, inputs: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """The sum of the cross entropies of images, each multiplied by its weight."""
    logits = F.linear(inputs, classifier.weight, classifier.bias)
    return F.cross_entropy(logits, labels, reduction="none") @ weights


def divide_into_folds(labels: np.ndarray, seed: int) -> np.ndarray:
    """The fold of each image, from 0 to `FOLDS` - 1, drawn at random so that every class is divided evenly. The image
    of a class that has no other is in none, -1: it is never held out."""
    draw = np.random.default_rng(seed)
    folds = np.full(len(labels), -1)
    for label in np.unique(labels):
        members = draw.permutation(np.flatnonzero(labels == label))
        if len(members) > 1:
            folds[members] = (np.arange(len(members)) + draw.integers(FOLDS)) % FOLDS
    return folds


def choose_penalty(
    inputs: Tensor,
    labels: Tensor,
    weights: Tensor,
    classes: int,
    seed: int,
    advance: Callable[[], None] = lambda: None,
) -> tuple[float, dict[float, float]]:
    """Chooses the penalty with the smallest cross entropy on images that were held out.

    The penalties become weaker, and each fit begins at the result of the one before it. The search ends after two
    penalties that were worse than the best.

    Args:
        inputs, labels, weights: See `fit_classifier`.
        classes: Number of classes.
        seed: Decides which images are held out.
        advance: Called after each penalty.

    Returns:
        The penalty, and the mean cross entropy for each penalty that was tried.
    """
    folds = torch.from_numpy(divide_into_folds(labels.cpu().numpy(), seed)).to(labels.device)
    held_out: list[Tensor] = []
    for fold in range(FOLDS):
        if sum(int(chosen.sum()) for chosen in held_out) < ENOUGH_HELD_OUT and (folds == fold).any():
            held_out.append(folds == fold)
    if not held_out:
        logger.warning(f"every class has a single image, so none chooses the penalty; it is {USUAL_PENALTY:g}")
        return USUAL_PENALTY, {}
    fits = [_zeros(inputs, classes)] * len(held_out)
    losses, best = dict[float, float](), PENALTIES[0]
    for penalty in PENALTIES:
        loss = 0.0
        for index, chosen in enumerate(held_out):
            fits[index] = fit_classifier(inputs[~chosen], labels[~chosen], weights[~chosen], penalty, fits[index])
            loss += float(_weighted_loss(fits[index], inputs[chosen], labels[chosen], weights[chosen]))
        losses[penalty] = loss / float(sum(weights[chosen].sum() for chosen in held_out))
        advance()
        best = min(losses, key=lambda tried: losses[tried])
        if list(losses).index(best) <= len(losses) - 3:
            break
    return best, losses


def _zeros(inputs: Tensor, classes: int) -> Classifier:
    """A classifier of zeros for inputs (images, channels)."""
    return Classifier(inputs.new_zeros(classes, inputs.shape[1]), inputs.new_zeros(classes))


def fit_to_features(
    features: Features,
    classes: int,
    weights: Tensor | None = None,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    advance: Callable[[], None] = lambda: None,
) -> tuple[Classifier, float, dict[float, float]]:
    """Fits a classifier to features: standardises and rotates them, chooses the penalty and fits to all.

    Args:
        features: Features of readable images.
        classes: Number of classes.
        weights: (images,): how much each image counts; None: all the same.
        seed, advance: See `choose_penalty`.
        device: Where it is computed; it must have fp64.

    Returns:
        The classifier of features as they are, on the CPU; the penalty; and the losses of `choose_penalty`.
    """
    inputs, labels = features.values.to(device, torch.float64), features.labels.to(device)
    weights = inputs.new_ones(len(inputs)) if weights is None else weights.to(inputs)
    mean, deviation = inputs.mean(0), inputs.std(0, correction=0)
    # A feature that is the same for all images has only rounding errors, which must not grow to 1.
    deviation = torch.where(deviation > 1e-6 * deviation.max(), deviation, 1.0)
    inputs = (inputs - mean) / deviation
    # Along the principal axes the penalty is the same, and the search is much faster.
    axes = torch.linalg.eigh(inputs.T @ inputs).eigenvectors
    inputs = inputs @ axes
    penalty, losses = choose_penalty(inputs, labels, weights, classes, seed, advance)
    fitted = fit_classifier(inputs, labels, weights, penalty, _zeros(inputs, classes))
    weight = fitted.weight @ axes.T / deviation
    return Classifier(weight.cpu(), (fitted.bias - weight @ mean).cpu()), penalty, losses
