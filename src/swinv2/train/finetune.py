"""Supervised training of a classifier, from pre-trained weights or from scratch.

In: settings. Out: a trainer, ready to run.

Source: Liu et al., Swin Transformer V2, appendix A; microsoft/Swin-Transformer, main.py and main_simmim_ft.py.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import EvalPrediction

from swinv2.errors import UsageError
from swinv2.lengths import as_pair
from swinv2.train.data.augment import Pixels, for_finetuning
from swinv2.train.data.classes import classes_to_train, match_classes
from swinv2.train.data.examples import IGNORED_LABEL
from swinv2.train.running import data_arguments, open_training, prepare_run
from swinv2.train.settings import FinetuneSettings
from swinv2.train.start import check_resumed_classes, model_to_finetune
from swinv2.train.trainer import SwinTrainer

BEST_CLASSES = 5
"""Number of most probable classes that evaluation stores for each image."""


class FinetuneTrainer(SwinTrainer):
    """Trains with cross entropy, label smoothing, mixup and cutmix."""

    args: FinetuneSettings

    def __init__(self, settings: FinetuneSettings, **rest: Any) -> None:
        super().__init__(settings, **rest)
        self.mix: Any = None
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
            images, labels = self.mix(images, labels)
        elif model.training:
            smoothing = self.args.label_smoothing_factor
        outputs = model(pixel_values=images)
        loss = cross_entropy(outputs.logits, labels, smoothing)
        return (loss, {"loss": loss, "logits": outputs.logits}) if return_outputs else loss


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross entropy in fp32. Labels are class indices (B,), where `IGNORED_LABEL` does not count, or probabilities of
    the classes (B, classes)."""
    if labels.ndim == 1 and not (labels != IGNORED_LABEL).any():
        return logits.float().sum() * 0.0
    return F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)


def best_classes(logits: Tensor, labels: Tensor) -> Tensor:
    """The most probable classes of each image, the best first. Evaluation stores nothing else of the logits."""
    return logits.topk(min(BEST_CLASSES, logits.shape[-1])).indices


def accuracies(prediction: EvalPrediction) -> dict[str, float]:
    """Metrics of a fine-tuning: top-1 and top-5 accuracy, and the numbers of readable and unreadable images."""
    best, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    counted = labels != IGNORED_LABEL
    hits = best[counted] == labels[counted][:, None]
    scores = {"top1": float(hits[:, 0].mean()), "images": int(counted.sum()), "unreadable": int((~counted).sum())}
    if best.shape[1] == BEST_CLASSES:
        scores["top5"] = float(hits.any(1).mean())
    return scores


def make_finetuning(settings: FinetuneSettings) -> FinetuneTrainer:
    """Builds the trainer of a fine-tuning, with its model and its data.

    Raises:
        UsageError: The settings, the data and the model do not fit together.
    """
    prepare_run(settings)
    given: tuple[str, ...] = ()
    if settings.label_names_file:
        try:
            lines = Path(settings.label_names_file).read_text().splitlines()
            given = tuple(line.strip() for line in lines if line.strip())
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--label-names-file {settings.label_names_file!r} cannot be read: {error}") from error
    train, evaluation = open_training(settings, given)
    train = classes_to_train(train)
    names = train.names
    if settings.resume_from_checkpoint:
        check_resumed_classes(settings.resume_from_checkpoint, names)
    if evaluation is not None:
        evaluation = match_classes(evaluation, names, "the training data")
    model: Any = model_to_finetune(settings, names)
    pixels = Pixels(as_pair("image_size", model.config.image_size), settings.image_mean, settings.image_std)
    augment = for_finetuning(
        pixels,
        settings.auto_augment,
        settings.color_jitter,
        settings.erase_probability,
        settings.crop_scale,
        settings.crop_padding,
    )
    return FinetuneTrainer(
        settings,
        model=model,
        compute_metrics=accuracies,
        preprocess_logits_for_metrics=best_classes,
        **data_arguments(settings, train, evaluation, pixels, augment, crop_ratio=settings.crop_ratio),
    )
