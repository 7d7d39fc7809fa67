"""A linear probe: the model is frozen, and only a linear classifier learns, on features that are computed once.

In: settings, images and a model. Out: the folder of the classifier, and its results. The classifier is fitted by
`linear.py` to standardised features of images without augmentation. Images that were held out from the training images
choose its L2 penalty, so the images to evaluate decide nothing.
"""

import copy
import json
import logging
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from swinv2.console import progress_bar
from swinv2.disk import whole_file
from swinv2.errors import UsageError
from swinv2.loading import label_names
from swinv2.train.checkpoints import checkpoints, whole_checkpoint
from swinv2.train.choices import given_settings
from swinv2.train.data.augment import make_processor, process_image
from swinv2.train.data.dataset import ImageDataset
from swinv2.train.features import BATCH_SIZE, Features, FeatureStore
from swinv2.train.finetune import FinetuneParts, cross_entropy, open_finetuning
from swinv2.train.health import HealthCheck
from swinv2.train.linear import PENALTIES, Classifier, fit_to_features
from swinv2.train.memory import FULL_BYTES, MIB, count_parameters
from swinv2.train.preview import describe_parts
from swinv2.train.running import FINAL, RESULTS_NAME
from swinv2.train.scores import Evaluation, best_classes
from swinv2.train.settings import PROBE_SETTINGS, FinetuneSettings
from swinv2.train.start import is_new_model

logger = logging.getLogger(__name__)

FEATURES = "features"
"""Folder of the stored features, in the folder of the run."""

SUFFICIENT_LOSS = 0.02
"""If the cross entropy of held-out images is at most this, a fine-tuning that chooses its settings keeps the probe."""

MOST_TO_TRY = 5_000
"""With more training images, it does not try a probe first: the features of all would take long."""


class Fit(NamedTuple):
    """A classifier that was fitted to features.

    Attributes:
        features: Those of the training images.
        classifier: The classifier.
        penalty: The chosen penalty.
        losses: The mean cross entropy of held-out images for each penalty that was tried; empty if none was held out.
    """

    features: Features
    classifier: Classifier
    penalty: float
    losses: dict[float, float]


class Probe:
    """A linear probe that is ready to run.

    Args:
        parts: Settings, images, and the classifier whose encoder is frozen.

    Raises:
        UsageError: Several processes run it.
    """

    def __init__(self, parts: FinetuneParts) -> None:
        settings, self.train, self.evaluation, self.model, self.class_weights = parts
        self.args = settings
        if settings.world_size > 1:
            raise UsageError(f"--linear-probe runs in one process, not in {settings.world_size}; start it alone.")
        self.fit: Fit | None = None
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
        features, fitted, penalty, losses = self.fit or self.fit_classifier()
        self.model.swinv2.requires_grad_(False)
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

    def fit_classifier(self) -> Fit:
        """Computes the features of the training images and fits the classifier; the model is not changed."""
        args, features = self.args, self._features(self.train).readable()
        weights = None if self.class_weights is None else self.class_weights[features.labels]
        with progress_bar(len(PENALTIES), "choosing the penalty", not args.disable_tqdm, "penalties") as progress:
            fitted = fit_to_features(
                features,
                self.model.num_labels,
                weights,
                seed=args.seed,
                # Not every accelerator has fp64.
                device=args.device if args.device.type == "cuda" else "cpu",
                advance=progress.advance,
            )
        self.fit = Fit(features, *fitted)
        return self.fit

    @property
    def suffices(self) -> bool:
        """Whether the fitted classifier is so sure and right about images that were held out from the fit that learning
        more can hardly help."""
        losses = {} if self.fit is None else self.fit.losses
        return bool(losses) and min(losses.values()) <= SUFFICIENT_LOSS

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


def may_suffice(parts: FinetuneParts) -> bool:
    """Whether a linear probe is tried before a training: if the settings are chosen, and none is given that only a
    training has; from trained weights, for few images, in one process."""
    settings, train = parts.settings, parts.train
    given = given_settings(settings)
    asked = settings.choose_settings and "linear_probe" not in given and given <= {*PROBE_SETTINGS, "use_cpu"}
    new_run = not settings.resume_from_checkpoint and not is_new_model(settings) and settings.world_size == 1
    return bool(asked and new_run and not train.streams and not train.several and len(train) <= MOST_TO_TRY)


def sufficient_probe(parts: FinetuneParts) -> Probe | None:
    """The linear probe, fitted, if it may suffice and does; None if the whole model has to learn."""
    if not may_suffice(parts):
        return None
    if parts.settings.dry_run:
        logger.warning(
            f"first, a linear probe is fitted; if its cross entropy of held-out images is at most {SUFFICIENT_LOSS}, "
            "it is the result (--linear-probe false: never)"
        )
        return None
    probe = Probe(parts)
    loss = min(probe.fit_classifier().losses.values(), default=None)
    if probe.suffices:
        logger.warning(
            f"a linear probe of the backbone's features is right about images that it has not seen (cross entropy "
            f"{loss:.2g}), so it is the result; --linear-probe false trains the whole model"
        )
        return probe
    return None


def make_probe(settings: FinetuneSettings) -> Probe:
    """Opens the images and the model of a linear probe.

    Raises:
        UsageError: The settings, the data and the model do not fit together, or the run has checkpoints of another
            training.
    """
    if not settings.dry_run and checkpoints(settings.run):
        raise UsageError(f"{settings.run} has checkpoints of another training; give another --output-dir.")
    probe = Probe(open_finetuning(settings))
    probe.model.swinv2.requires_grad_(False)
    return probe
