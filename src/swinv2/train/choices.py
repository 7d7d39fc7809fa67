"""The settings of a fine-tuning that nobody gave, chosen from the data and the model.

In: settings with the names of those that were given, the images to train on and the number of those to evaluate. Out: a
value and a reason for each other setting that matters, for `--dry-run` and for the settings. `docs/guides/train.md`
explains the table `LENGTHS`. This module builds no model and trains nothing.
"""

import math
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from swinv2.config import Swinv2Config
from swinv2.errors import UsageError
from swinv2.images import BrokenImageError
from swinv2.lengths import as_pair
from swinv2.loading import read_config
from swinv2.train.data.augment import decode
from swinv2.train.data.dataset import ImageDataset
from swinv2.train.settings import ADAMW_ALONE, PROBE_SETTINGS, FinetuneSettings, RunSettings, Settings, make_settings
from swinv2.train.start import NEW, choose_normalisation, given_fields, is_new_model
from swinv2.zoo import PRESETS

ENOUGH_EVALUATED = 200
"""With fewer images to evaluate, scores are too coarse to choose an epoch or to stop early."""

SAMPLED_IMAGES = 64
"""Number of training images that are opened to find their usual size, and whether they have colour."""

SIZES = (64, 96, 128)
"""Image sizes in pixels to choose from; larger ones take long on a small machine."""

COLOURS = 3
"""Channels of a model whose images may have colours."""

SMALL_NETWORK: dict[str, Any] = {
    "patch_size": 4,
    "window_size": 12,
    "embed_dim": 64,
    "depths": [2, 2, 4, 1],
    "num_heads": [2, 4, 8, 16],
}
"""The network of `--model new` without `--model-fields`: that of the model that ships."""


class Length(NamedTuple):
    """A row of the table: the length of a training by the number of its images.

    Attributes:
        images: The row is for at most so many images.
        epochs: Epochs from trained weights.
        epochs_of_new: Epochs from new weights.
        batch: Images of a step.
    """

    images: float
    epochs: int
    epochs_of_new: int
    batch: int


LENGTHS = (
    Length(500, 30, 200, 16),
    Length(2_000, 12, 120, 32),
    Length(10_000, 8, 60, 64),
    Length(50_000, 5, 40, 128),
    Length(float("inf"), 4, 30, 256),
)
USUAL_CLASSES = 10
"""With more classes, a class has fewer images and needs more epochs: those of so many classes of its size."""


class Choice(NamedTuple):
    """The chosen value of a setting, and the reason in words."""

    value: Any
    reason: str


class Candidate(NamedTuple):
    """A choice for a setting, and the settings that keep it from being chosen if one of them is given."""

    name: str
    value: Any
    reason: str
    unless: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataFacts:
    """What the choices depend on.

    Attributes:
        images: Number of training images; infinite if they stream.
        side: Median of the shorter sides of images, in pixels; None if it is unknown.
        has_colour: Whether a sampled image has colours.
        classes: Number of classes; 0 if an image may have several.
        evaluated: Number of images to evaluate.
    """

    images: float
    side: int | None
    has_colour: bool
    classes: int = 0
    evaluated: int = 0


def look_at_data(train: ImageDataset, channels: int) -> DataFacts:
    """Opens some training images, spread evenly over the data set.

    Args:
        train: The training images.
        channels: Channels of the model.
    """
    if train.streams:
        return DataFacts(float("inf"), None, channels == COLOURS)
    sides: list[int] = []
    has_colour = False
    for index in np.unique(np.linspace(0, len(train) - 1, SAMPLED_IMAGES).astype(int)):
        try:
            image = decode(train[index].image, channels)
        except BrokenImageError:
            # The training counts unreadable images and names them.
            continue
        pixels = image.permute(1, 2, 0).numpy() if isinstance(image, Tensor) else np.atleast_3d(np.asarray(image))
        sides.append(min(pixels.shape[:2]))
        has_colour = has_colour or (channels == COLOURS and bool((pixels != pixels[:, :, :1]).any()))
    return DataFacts(len(train), int(np.median(sides)) if sides else None, has_colour)


def settings_of(told: Mapping[str, Any]) -> FinetuneSettings:
    """Makes the settings of a fine-tuning. If wanted, evaluation, checkpoints and the best model are chosen first: they
    must be known before the data is opened.

    Args:
        told: The given values, by the names of the settings.

    Raises:
        UsageError: A value is invalid, or conflicts with another one.
    """
    if not told.get("choose_settings"):
        return make_settings(FinetuneSettings, told)
    chosen = keep_not_given(told, about_evaluation(told), bool(told.get("linear_probe")))
    settings = make_settings(FinetuneSettings, {**told, **values_of(chosen)})
    settings.chosen = chosen
    return settings


def about_evaluation(told: Mapping[str, Any]) -> list[Candidate]:
    """Evaluation, checkpoints and the best model. What is given of one of evaluation and saving decides the other."""
    if told.get("streaming"):
        return []
    by_steps = "eval_steps" in told or "save_steps" in told
    usual = "steps" if by_steps else "epoch"
    evaluates = told.get("eval_strategy", told.get("save_strategy", usual))
    evaluates = evaluates if evaluates in ("steps", "epoch") or "eval_strategy" in told else "epoch"
    why = "evaluates and saves together"
    found = [Candidate("eval_strategy", evaluates, why)]
    if evaluates == "no":
        return found
    found.append(Candidate("save_strategy", evaluates, why))
    if evaluates == "steps" and by_steps:
        steps = told.get("eval_steps", told.get("save_steps"))
        found += [Candidate("eval_steps", steps, why), Candidate("save_steps", steps, why)]
    if told.get("save_strategy", evaluates) in (evaluates, "best"):
        best = "the evaluation of the highest top-1 is kept"
        found.append(Candidate("load_best_model_at_end", True, best))
        if told.get("load_best_model_at_end", True):
            found.append(Candidate("metric_for_best_model", "top1", best))
    return found


def with_chosen_settings(
    settings: FinetuneSettings, train: ImageDataset, evaluation: ImageDataset | None
) -> FinetuneSettings:
    """Chooses each setting that is not given, from the images, the number of those to evaluate and the model."""
    choose_normalisation(settings)
    facts = look_at_data(train, len(settings.image_mean))
    classes = 0 if train.several else len(train.names)
    facts = replace(facts, classes=classes, evaluated=0 if evaluation is None else len(evaluation))
    found = [*about_model(settings, facts), *about_precision(settings)]
    found += [*_about_length(settings, facts), *_about_images(facts)]
    several = "images have several labels"
    if train.several:
        found.append(Candidate("label_smoothing_factor", 0.0, several))
    last, withdrawn = keep_last(settings, settings.early_stopping, facts.evaluated, train.things)
    found += last
    if not withdrawn and train.several and "metric_for_best_model" in settings.chosen:
        best = f"{several}: the epoch of the highest mAP is kept"
        found += [Candidate("load_best_model_at_end", True, best), Candidate("metric_for_best_model", "mAP", best)]
    return with_choices(settings, found, withdrawn, settings.linear_probe)


def keep_last(
    settings: RunSettings, early_stopping: int, evaluated: int, things: str
) -> tuple[list[Candidate], set[str]]:
    """The choice to keep the last model instead of the best one, which was chosen, if there are too few images to
    evaluate; and the choices that it withdraws.

    Args:
        settings: The settings.
        early_stopping: See `FinetuneOptions`.
        evaluated: Number of images to evaluate.
        things: What they are.
    """
    by_score = {"load_best_model_at_end", "metric_for_best_model"} <= settings.chosen.keys()
    needs_score = early_stopping or settings.told.get("save_strategy") == "best"
    if not by_score or needs_score or evaluated >= ENOUGH_EVALUATED:
        return [], set()
    last = f"{evaluated} {things} to evaluate are too few to choose an epoch; the last one is kept"
    return [Candidate("load_best_model_at_end", False, last)], {"metric_for_best_model"}


def about_model(settings: RunSettings, facts: DataFacts) -> list[Candidate]:
    """Network, image size, window; not for models of videos."""
    found: list[Candidate] = []
    fields = given_fields(settings)
    images = f"the nearest to images of {facts.side} pixels" if facts.side else "the size of the images is unknown"
    config, own = None, SIZES[0]
    if settings.model == NEW:
        config = Swinv2Config(**SMALL_NETWORK, image_size=SIZES[-1])
        found.append(Candidate("model_fields", SMALL_NETWORK, "the network of the model that ships"))
    elif not is_new_model(settings):
        loaded = read_config(settings.model)
        height, width = as_pair("image_size", loaded.image_size)
        # Models of larger images, and of rectangles, keep their size.
        if height == width <= SIZES[-1]:
            config, own = loaded, height
            images += f", the model learned at {own}"
    if config is not None and "image_size" not in fields:
        wanted = facts.side or own
        # A model of tiny images keeps its size if the images are small too.
        nearest = min(own, *SIZES, key=lambda size: (abs(max(size, SIZES[0]) - wanted), size != own))
        if settings.model == NEW or nearest != own:
            found.append(Candidate("image_size", [nearest], images))
        size = tuple(settings.image_size * 2)[:2] if "image_size" in given_settings(settings) else (nearest, nearest)
        if isinstance(config.window_size, int) and (settings.model == NEW or size != (own, own)):
            window = window_for(config, size)
            found.append(Candidate("window_size", window, "pads the maps least", ("model_fields",)))
    return found


def about_precision(settings: RunSettings) -> list[Candidate]:
    """Device and precision."""
    found: list[Candidate] = []
    precisions = ("bf16", "fp16", "tf32", *["use_cpu"] * (not settings.use_cpu))
    if torch.accelerator.is_available() and not settings.use_cpu:
        if torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False):
            found.append(Candidate("bf16", True, "the GPU computes with bf16", precisions))
    else:
        features = torch.cpu.get_capabilities()
        if features.get("avx512_bf16") or features.get("amx_bf16"):
            why = "the processor has instructions for bf16"
            found.append(Candidate("use_cpu", True, "there is no GPU", precisions))
            found.append(Candidate("bf16", True, why, precisions))
    return found


def window_for(config: Swinv2Config, size: tuple[int, ...]) -> int:
    """The window of a network at an image size: the one that pads its maps least, from half of the network's own window
    to the whole; of equal ones the largest."""
    most = max(max(stage.window) for stage in config.stages())
    try:
        resized = config.resized(size)
    except ValueError as error:
        raise UsageError(f"--image-size is impossible: {error}") from error
    sides = [side for stage in resized.stages() for side in stage.grid]

    def padding(window: int) -> float:
        """The share of tokens that padding adds, summed over the stages."""
        return sum((math.ceil(side / min(window, side)) * min(window, side) / side) ** 2 for side in sides)

    return min(range(most, most // 2, -1), key=padding)


def _row_of(images: float) -> Length:
    """The row of the table for so many images."""
    return next(row for row in LENGTHS if images <= row.images)


def _about_length(settings: FinetuneSettings, facts: DataFacts) -> list[Candidate]:
    """Epochs, batch, learning rates and schedule."""
    is_new = is_new_model(settings)
    row = _row_of(facts.images)
    row_of_epochs = _row_of(facts.images * min(1.0, USUAL_CLASSES / max(facts.classes, 1)))
    epochs = row_of_epochs.epochs_of_new if is_new else row_of_epochs.epochs
    devices = settings.world_size * max(settings.n_gpu, 1) * settings.gradient_accumulation_steps
    images = f"{facts.images:,} training images" if facts.images < float("inf") else "images stream"
    of_classes = f", {facts.classes} classes" if row_of_epochs != row else ""
    why = f"{images}{of_classes}, {'new' if is_new else 'trained'} weights"
    length = settings.told.get("num_train_epochs", epochs)
    steps = settings.max_steps if settings.max_steps > 0 else length * facts.images / row.batch
    found = [
        Candidate("num_train_epochs", epochs, why, ("max_steps",)),
        Candidate("per_device_train_batch_size", max(row.batch // devices, 1), images),
        Candidate("dataloader_persistent_workers", True, "for short epochs", ("dataloader_num_workers",)),
        Candidate("per_device_eval_batch_size", 64, "evaluation stores no gradients"),
        Candidate("warmup_steps", 0.1, "a tenth of the steps"),
        Candidate("lr_scheduler_type", "cosine", "falls to 0 at the end", ("milestones", "lr_scheduler_kwargs")),
        Candidate("logging_steps", max(1, min(50, int(min(steps, 1e9)) // 100)), "about a hundred lines of log"),
        Candidate("label_smoothing_factor", 0.1, "the authors' value"),
    ]
    if settings.model not in PRESETS and "drop_path_rate" not in given_fields(settings):
        found.append(Candidate("drop_path_rate", 0.1, "the usual rate of small networks"))
    by_epoch = settings.load_best_model_at_end and settings.max_steps <= 0 and settings.eval_strategy == "epoch"
    patience = max(5, int(length / 3))
    if by_epoch and patience < length and facts.evaluated >= ENOUGH_EVALUATED:
        found.append(Candidate("early_stopping", patience, "a third of the epochs, at least 5"))
    by_muon = (*ADAMW_ALONE, "lora", "fsdp")
    if is_new:
        found.append(Candidate("matrix_learning_rate", 5e-3, "new weights learn faster with Muon", by_muon))
        found.append(Candidate("learning_rate", 1e-3, "new weights", ("base_rate",)))
    else:
        found.append(Candidate("learning_rate", 2e-3, "trained weights", ("base_rate",)))
        found.append(Candidate("layer_decay", 0.75, "early layers change less", ("matrix_learning_rate",)))
    return found


def _about_images(facts: DataFacts) -> list[Candidate]:
    """Augmentation."""
    if facts.has_colour:
        return [
            Candidate("crop_scale", [0.35, 1.0], "mild crops", ("crop_padding",)),
            Candidate("color_jitter", 0.2, "the images have colours", ("auto_augment",)),
        ]
    return [
        Candidate(
            "crop_scale", [0.6, 1.0], "the images are grey: X-rays, digits, letters fill them", ("crop_padding",)
        ),
        Candidate("flip", 0.0, "the images are grey: X-rays, digits and letters have a left and a right"),
    ]


def given_settings(settings: RunSettings) -> set[str]:
    """The names of the settings that somebody gave."""
    return settings.told.keys() - settings.chosen.keys()


def with_choices(
    settings: Settings, candidates: list[Candidate], withdrawn: Set[str] = frozenset(), is_probe: bool = False
) -> Settings:
    """The settings with the choices for those that are not given, without earlier choices that are withdrawn."""
    chosen = keep_not_given(given_settings(settings), candidates, is_probe)
    earlier = {name: choice for name, choice in settings.chosen.items() if name not in withdrawn}
    told = {name: value for name, value in settings.told.items() if name in earlier or name not in settings.chosen}
    changed = make_settings(type(settings), told | values_of(chosen))
    changed.resume_from_checkpoint = settings.resume_from_checkpoint
    changed.image_mean, changed.image_std = settings.image_mean, settings.image_std
    changed.chosen = earlier | chosen
    return changed


def keep_not_given(given: Iterable[str], candidates: list[Candidate], is_probe: bool = False) -> dict[str, Choice]:
    """The choices for settings that are not given; those of a linear probe only, if it is one."""
    return {
        candidate.name: Choice(candidate.value, candidate.reason)
        for candidate in candidates
        if not {candidate.name, *candidate.unless} & set(given) and (candidate.name in PROBE_SETTINGS or not is_probe)
    }


def values_of(chosen: Mapping[str, Choice]) -> dict[str, Any]:
    """The values of choices, by the names of the settings."""
    return {name: choice.value for name, choice in chosen.items()}
