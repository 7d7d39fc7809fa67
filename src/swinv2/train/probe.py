"""A linear probe: the model is frozen, and only a linear classifier learns, on features that are computed once.

In: settings, images and a model. Out: the folder of the classifier, and its results. The classifier is a multinomial
logistic regression, fitted by L-BFGS in fp64 on standardised features of images without augmentation. Images that were
held out from the training images choose its L2 penalty, so the images to evaluate decide nothing. Nothing is random but
the division into folds, which the seed decides.

Source: Kornblith et al., Do Better ImageNet Models Transfer Better?, 2019, appendix A.5.
"""

import copy
import json
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from swinv2.console import progress_bar
from swinv2.disk import whole_file
from swinv2.errors import UsageError
from swinv2.loading import label_names
from swinv2.train.checkpoints import checkpoints, whole_checkpoint
from swinv2.train.data.augment import make_processor, process_image
from swinv2.train.data.dataset import ImageDataset
from swinv2.train.features import BATCH_SIZE, Features, FeatureStore
from swinv2.train.finetune import FinetuneParts, cross_entropy, open_finetuning
from swinv2.train.health import HealthCheck
from swinv2.train.memory import FULL_BYTES, MIB, count_parameters
from swinv2.train.preview import describe_parts
from swinv2.train.running import FINAL, RESULTS_NAME
from swinv2.train.scores import Evaluation, best_classes
from swinv2.train.settings import FinetuneSettings

logger = logging.getLogger(__name__)

FEATURES = "features"
"""Folder of the stored features, in the folder of the run."""

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


class Probe:
    """A linear probe that is ready to run.

    Args:
        parts: Settings with `linear_probe`, images, and the classifier whose encoder is frozen.

    Raises:
        UsageError: Several processes run it.
    """

    def __init__(self, parts: FinetuneParts) -> None:
        settings, self.train, self.evaluation, self.model, self.class_weights = parts
        self.args = settings
        if settings.world_size > 1:
            raise UsageError(f"--linear-probe runs in one process, not in {settings.world_size}; start it alone.")
        self.model.swinv2.requires_grad_(False)
        self.processor = make_processor(parts.pixels, settings.crop_ratio)
        dtype = torch.float16 if settings.fp16_full_eval else torch.float32
        dtype = torch.bfloat16 if settings.bf16_full_eval else dtype
        encoder = copy.deepcopy(self.model.swinv2).eval().to(settings.device, dtype)
        transform = partial(process_image, self.processor)
        self.store = FeatureStore(settings.run / FEATURES, encoder, transform, self.processor.to_dict())

    def preview(self) -> dict[str, Any]:
        """Data, model, features and memory of the probe, as JSON values; nothing is computed."""
        images = {"train": self.train} | ({} if self.evaluation is None else {"evaluated": self.evaluation})
        channels = self.model.config.hidden_size
        numbers = sum(len(dataset) for dataset in images.values()) * channels
        memory = {
            # The classifier, and the encoder that computes the features.
            "weights": 2 * count_parameters(self.model) * FULL_BYTES / MIB,
            "features": numbers * FULL_BYTES / MIB,
            # In fp64: the features, a part of them without a fold, and a copy on the way.
            "fit": 3 * len(self.train) * channels * 2 * FULL_BYTES / MIB,
        }
        return describe_parts(self.args, self.train, self.evaluation, self.model) | {
            "features": {
                "channels": channels,
                "missing": {name: len(self.store.missing(dataset)) for name, dataset in images.items()},
            },
            "memory_mib": {name: round(value, 1) for name, value in memory.items()},
        }

    def run(self) -> dict[str, Any]:
        """Computes the features, fits the classifier, evaluates it and saves it.

        Returns:
            The results, which are also in `results.json`.
        """
        args, head = self.args, self.model.classifier
        features = self._features(self.train).readable()
        weights = None if self.class_weights is None else self.class_weights[features.labels]
        with progress_bar(len(PENALTIES), "choosing the penalty", not args.disable_tqdm, "penalties") as progress:
            fitted, penalty, losses = fit_to_features(
                features,
                self.model.num_labels,
                weights,
                seed=args.seed,
                # Not every accelerator has fp64.
                device=args.device if args.device.type == "cuda" else "cpu",
                advance=progress.advance,
            )
        head.load_state_dict({"weight": fitted.weight, "bias": fitted.bias})
        results: dict[str, Any] = {
            "images": len(features.labels),
            "unreadable": len(features.broken),
            "penalty": penalty,
            "held_out_losses": {f"{tried:.2g}": loss for tried, loss in losses.items()},
            "loss": float(cross_entropy(self._logits(features), features.labels)),
        }
        if self.evaluation is not None:
            results |= self._evaluate(self.evaluation)
        with whole_checkpoint(args.run / FINAL, publishes=True) as written:
            self.model.save_pretrained(written)
            self.processor.save_pretrained(written)
        with whole_file(args.run / RESULTS_NAME, alone=True) as unfinished:
            unfinished.write_text(json.dumps(results, indent=2) + "\n")
        return results

    def _features(self, dataset: ImageDataset) -> Features:
        """The features of a data set, stored in the folder of the run; shows the progress."""
        args = self.args
        health = HealthCheck(args.run, args.device, args.max_broken_images)
        with progress_bar(len(dataset), "computing features", not args.disable_tqdm) as progress:
            features = self.store.features_of(
                dataset,
                batch_size=args.told.get("per_device_eval_batch_size", BATCH_SIZE),
                workers=args.told.get("dataloader_num_workers"),
                advance=progress.update,
                note_broken=health.count_broken,
            )
        if len(features.broken) == len(dataset):
            raise UsageError(f"{dataset.source} has no readable image.")
        return features

    def _logits(self, features: Features) -> Tensor:
        """The scores of the classifier as it is saved."""
        with torch.inference_mode():
            return self.model.classifier(features.values)

    def _evaluate(self, dataset: ImageDataset) -> dict[str, Any]:
        """Scores of the classifier; draws the confusion matrix and the most confident mistakes."""
        features = self._features(dataset)
        logits, truths = self._logits(features), features.labels.numpy()
        loss = float(cross_entropy(logits, features.labels))
        best, probabilities = (column.numpy() for column in best_classes(logits))
        names = tuple(label_names(self.model.config))
        found = Evaluation.of(truths, best, probabilities, loss, names, features.broken)
        metrics = {"loss": loss, **found.metrics, "unreadable": len(features.broken)}
        return {f"eval_{name}": value for name, value in metrics.items()} | {
            **{name: value for name, value in found.summary().items() if isinstance(value, dict)},
            "mistakes": found.mistakes(dataset),
            "figures": list(map(str, found.draw(dataset, self.args.run))),
        }


def make_probe(settings: FinetuneSettings) -> Probe:
    """Opens the images and the model of a linear probe.

    Raises:
        UsageError: The settings, the data and the model do not fit together, or the run has checkpoints of another
            training.
    """
    if not settings.dry_run and checkpoints(settings.run):
        raise UsageError(f"{settings.run} has checkpoints of another training; give another --output-dir.")
    return Probe(open_finetuning(settings))
