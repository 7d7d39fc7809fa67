"""Supervised training of a classifier, from pre-trained weights or from scratch.

In: settings. Out: a trainer, ready to run.

Source: Liu et al., Swin Transformer V2, appendix A; microsoft/Swin-Transformer, main.py and main_simmim_ft.py.
"""

import logging
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import EvalPrediction, TrainerCallback, TrainerControl

from swinv2.errors import UsageError, few
from swinv2.lengths import as_pair
from swinv2.loading import label_names
from swinv2.train.choices import with_chosen_settings
from swinv2.train.data.augment import Pixels, for_finetuning
from swinv2.train.data.classes import Data, classes_to_train, match_classes
from swinv2.train.data.dataset import ImageDataset
from swinv2.train.data.examples import IGNORED_LABEL
from swinv2.train.flags import as_flag
from swinv2.train.multilabel import MultilabelEvaluation, binary_cross_entropy, mix_several
from swinv2.train.running import data_arguments, open_training, prepare_run, read_names, refuse_metric
from swinv2.train.scores import BEST_CLASSES, Evaluation, best_classes
from swinv2.train.settings import FinetuneSettings
from swinv2.train.start import check_resumed_classes, model_to_finetune
from swinv2.train.trainer import SwinTrainer

logger = logging.getLogger(__name__)

UNBALANCED = 3
"""If the largest class has so many times the images of the smallest one, a message says so."""


class FinetuneTrainer(SwinTrainer):
    """Trains with cross entropy, label smoothing, mixup and cutmix; if an image may have several labels, with binary
    cross entropy.

    Args:
        settings: Settings of `swinv2 finetune`.
        class_weights: Weight of each class in the loss; None for equal weights.
        rest: See `SwinTrainer`.
    """

    args: FinetuneSettings

    def __init__(self, settings: FinetuneSettings, class_weights: Tensor | None = None, **rest: Any) -> None:
        super().__init__(settings, compute_metrics=self._score, preprocess_logits_for_metrics=self._stored, **rest)
        self.several = self.model.config.problem_type == "multi_label_classification"
        self.class_weights = class_weights
        self.mix: Any = None
        # The last evaluation, for `report`.
        self._found: Evaluation | MultilabelEvaluation | None = None
        if settings.early_stopping:
            self.add_callback(EarlyStopping(settings.early_stopping))
        if settings.mixup or settings.cutmix:
            from timm.data.mixup import Mixup

            self.mix = Mixup(
                mixup_alpha=settings.mixup,
                cutmix_alpha=settings.cutmix,
                label_smoothing=settings.label_smoothing_factor,
                num_classes=self.model.config.num_labels,
            )
        # Otherwise the Trainer would smooth the labels a second time.
        self.label_smoother = None

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Cross entropy in fp32; in training, of mixed images and labels if mixup or cutmix is on."""
        images, labels = inputs["pixel_values"], inputs["labels"]
        smoothing = 0.0
        if model.training and self.mix is not None:
            mix = partial(mix_several, self.mix) if self.several else self.mix
            images, labels = mix(images, labels)
        elif model.training:
            smoothing = self.args.label_smoothing_factor
        logits = self.logits_of(model, images)
        if self.several:
            loss = binary_cross_entropy(logits, labels)
        else:
            loss = cross_entropy(logits, labels, smoothing, self.class_weights if model.training else None)
        return (loss, {"loss": loss, "logits": logits}) if return_outputs else loss

    def logits_of(self, model: nn.Module, images: Tensor) -> Tensor:
        """The logits (B, classes) of a batch of images."""
        return model(pixel_values=images).logits

    def _stored(self, logits: Tensor, labels: Tensor) -> Any:
        """What an evaluation stores of the logits: for several labels all, otherwise the best classes."""
        return logits.float() if self.several else best_classes(logits)

    def _score(self, prediction: EvalPrediction) -> dict[str, float]:
        """The metrics of an evaluation, which is stored for `report`."""
        names, truths = tuple(label_names(self.model.config)), np.asarray(prediction.label_ids)
        stored: Any = prediction.predictions
        if self.several:
            self._found = MultilabelEvaluation.of(truths, stored, None, names, [])
        else:
            best, probabilities = stored
            self._found = Evaluation.of(truths, best, probabilities, None, names, [])
        return self._found.metrics | {"unreadable": len(truths) - self._found.images}

    def report(self) -> dict[str, Any]:
        """Draws the figures of the last evaluation, see `scores.Evaluation` and `MultilabelEvaluation`; returns the
        numbers of each class and the files."""
        if self._found is None or self.eval_dataset is None:
            return {}
        examples: Any = self.eval_dataset
        files = self._found.draw(examples.dataset, self.run)
        of_classes = {name: value for name, value in self._found.summary().items() if isinstance(value, dict)}
        return {**of_classes, "mistakes": self._found.mistakes(examples.dataset), "figures": list(map(str, files))}


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0, weights: Tensor | None = None) -> Tensor:
    """Cross entropy in fp32, the mean over images. Labels are class indices (B,), where `IGNORED_LABEL` does not count,
    or probabilities of the classes (B, classes); `weights` (classes,) are factors of the losses of images."""
    if labels.ndim == 1 and not (labels != IGNORED_LABEL).any():
        return logits.float().sum() * 0.0
    if weights is None:
        return F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
    # torch's mean would divide by the weights of this batch, so that a batch of one class weighs as much as any other.
    losses = F.cross_entropy(
        logits.float(), labels, weights.to(logits.device), reduction="none", label_smoothing=smoothing
    )
    return losses.sum() / (len(labels) if labels.ndim > 1 else (labels != IGNORED_LABEL).sum())


@dataclass(eq=False)
class EarlyStopping(TrainerCallback):
    """Stops a training after `patience` evaluations that were all worse than the best one.

    transformers' own callback counts in itself, so a run that resumes would count anew; this one counts in the log.
    """

    patience: int

    def on_evaluate(self, args: Any, state: Any, control: TrainerControl, **_: Any) -> None:
        """Counts the evaluations since the last of the best ones."""
        name = f"eval_{args.metric_for_best_model.removeprefix('eval_')}"
        scores = [entry[name] for entry in reversed(state.log_history) if name in entry]
        if scores and scores.index(max(scores) if args.greater_is_better else min(scores)) >= self.patience:
            control.should_training_stop = True

    # A run that was stopped in this way, and resumes, has nothing left to do.
    on_train_begin = on_evaluate


def balanced_weights(counts: np.ndarray) -> Tensor:
    """Weights (classes,) with which all classes together weigh the same, and an image one on average. A class without
    images weighs nothing.

    Args:
        counts: Images of each class.
    """
    present = counts > 0
    weights = counts.sum() / (present.sum() * np.maximum(counts, 1))
    return torch.tensor(np.where(present, weights, 0.0), dtype=torch.float32)


class FinetuneParts(NamedTuple):
    """What a fine-tuning is made of.

    Attributes:
        settings: The settings, with those that were chosen.
        train: The images to learn from.
        evaluation: The images to evaluate; None for no evaluation.
        model: The model to start from.
        class_weights: Weight of each class in the loss; None for equal weights.
    """

    settings: FinetuneSettings
    train: ImageDataset
    evaluation: ImageDataset | None
    model: Any
    class_weights: Tensor | None

    @property
    def pixels(self) -> Pixels:
        """Size and normalisation of the model's images."""
        size = as_pair("image_size", self.model.config.image_size)
        return Pixels(size, self.settings.image_mean, self.settings.image_std)


def open_finetuning(settings: FinetuneSettings) -> FinetuneParts:
    """Opens the data, chooses settings that are not given, and builds the model.

    Raises:
        UsageError: The settings, the data and the model do not fit together.
    """
    prepare_run(settings)
    train, evaluation = open_training(settings, read_names(settings.label_names_file))
    train = classes_to_train(train)
    names = train.names
    if settings.resume_from_checkpoint:
        check_resumed_classes(settings.resume_from_checkpoint, names)
    if evaluation is not None and evaluation.several and not train.several:
        raise UsageError(
            f"{evaluation.source} has several labels for an image, {train.source} has one; give both the same kind."
        )
    if evaluation is not None:
        evaluation = match_evaluation(evaluation, names)
    if settings.choose_settings:
        settings = with_chosen_settings(settings, train, evaluation)
    metrics = ["mAP", "f1", "exact"] if train.several else ["top1", *["top5"] * (len(names) > BEST_CLASSES)]
    refuse_metric(settings, ["loss", *metrics])
    for name in ("class_weights", "label_smoothing_factor", "linear_probe"):
        if train.several and getattr(settings, name):
            raise UsageError(f"{as_flag(name)} is for images of one label, and {train.source} has lists; leave it out.")
    counts = None if train.streams else np.bincount(train.labels(), minlength=len(names))
    model = model_to_finetune(settings, names, train.several)
    weights = None if train.several else class_weights(settings.class_weights, counts, names, train.things)
    return FinetuneParts(settings, train, evaluation, model, weights)


def match_evaluation(evaluation: Data, names: tuple[str, ...]) -> Data:
    """Gives the images to evaluate the classes of those to train; a message names the classes without any."""
    evaluation = match_classes(evaluation, names, "the training data")
    counts = np.bincount(evaluation.labels(), minlength=len(names))
    without = [repr(names[index]) for index in np.flatnonzero(counts == 0)]
    if without:
        logger.warning(f"there is no {evaluation.things[:-1]} to evaluate of {few(without, 5)}")
    return evaluation


def make_finetuning(settings: FinetuneSettings) -> FinetuneTrainer:
    """Builds the trainer of a fine-tuning, with its model and its data; see `open_finetuning`."""
    return make_trainer(open_finetuning(settings))


def make_trainer(parts: FinetuneParts) -> FinetuneTrainer:
    """Builds the trainer of a fine-tuning of its parts."""
    settings = parts.settings
    augment = for_finetuning(
        parts.pixels,
        settings.auto_augment,
        settings.color_jitter,
        settings.erase_probability,
        settings.crop_scale,
        settings.crop_padding,
        settings.flip,
    )
    return FinetuneTrainer(
        settings,
        parts.class_weights,
        model=parts.model,
        **data_arguments(
            settings, parts.train, parts.evaluation, parts.pixels, augment, crop_ratio=settings.crop_ratio
        ),
    )


def class_weights(wanted: str, counts: np.ndarray | None, names: tuple[str, ...], things: str) -> Tensor | None:
    """The weights of the classes in the loss, if wanted; a message if classes are unbalanced and have no weights.

    Args:
        wanted: "balanced", or "" for none.
        counts: Training images of each class; None if they stream.
        names: Names of the classes.
        things: What is counted, for messages.
    """
    if wanted:
        if counts is None:
            raise UsageError("--class-weights needs the labels of all images in advance; leave out --streaming.")
        return balanced_weights(counts)
    if counts is not None and counts.max() >= UNBALANCED * counts.min():
        most, least = int(counts.argmax()), int(counts.argmin())
        logger.warning(
            f"the classes are unbalanced: {names[most]!r} has {counts[most]:,} {things}, {names[least]!r} has "
            f"{counts[least]:,}; with --class-weights balanced, all classes count the same"
        )
    return None
