"""All settings of a training, checked: those of this package and of transformers' `TrainingArguments`.

In: the given values. Out: settings, or a `UsageError`. This module opens no data and builds no model.
"""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args

import torch
from transformers import TrainingArguments

from swinv2.errors import UsageError
from swinv2.lengths import as_windows
from swinv2.sizes import read_windows
from swinv2.train.flags import as_flag, read_flags
from swinv2.train.optim.schedule import make_scheduler
from swinv2.train.options import PAPER_BATCH, FinetuneOptions, PretrainOptions, RunOptions, refuse_missing

PROBE_SETTINGS = (
    "as_json",
    "bf16_full_eval",
    "choose_settings",
    "class_weights",
    "crop_ratio",
    "data",
    "dataloader_num_workers",
    "disable_tqdm",
    "do_eval",
    "dry_run",
    "eval_data",
    "eval_split",
    "eval_strategy",
    "fp16_full_eval",
    "held_out_share",
    "image_column",
    "image_mean",
    "image_size",
    "image_std",
    "label_column",
    "label_names_file",
    "linear_probe",
    "log_level",
    "max_broken_images",
    "model",
    "model_fields",
    "output_dir",
    "per_device_eval_batch_size",
    "report_to",
    "resume",
    "seed",
    "stretch_bias",
    "train_fraction",
    "train_split",
    "window_size",
)
"""The settings that may be given or chosen with --linear-probe: they have an effect or do no harm. All others
but --use-cpu are errors; that one may be given, but is never chosen, because it would be for a training with bf16."""


ADAMW_ALONE = ("layer_decay", "backbone_rate", "optim", "adam_beta1", "adam_beta2", "adam_epsilon", "base_rate")
"""Settings that have no effect with Muon."""


@dataclass
class RunSettings(RunOptions, TrainingArguments):
    """The settings that pre-training and fine-tuning share."""

    options: ClassVar[type[RunOptions]] = RunOptions
    # The values from recipe and flags; those of them that differ from their defaults.
    told: dict[str, Any] = field(default_factory=dict[str, Any], init=False, repr=False)
    given: dict[str, Any] = field(default_factory=dict[str, Any], init=False, repr=False)
    # The chosen values and reasons of settings that are not given; see choices.py.
    chosen: dict[str, Any] = field(default_factory=dict[str, Any], init=False, repr=False)

    def __post_init__(self) -> None:
        refuse_missing(vars(self))
        if self.streaming and self.max_steps <= 0:
            raise UsageError("--streaming needs --max-steps: the number of images is unknown.")
        if self.streaming and self.train_fraction != 1.0:
            raise UsageError("--train-fraction reads all labels first; leave out --streaming.")
        if not 0.0 < self.held_out_share < 1.0:
            raise UsageError(f"--held-out-share is {self.held_out_share}; expected above 0 and below 1.")
        if len(self.image_size) > 2:
            raise UsageError(f"--image-size is {self.image_size}; expected one length, or height and width.")
        self.window_size = _plain_windows(self.window_size)
        self._refuse_beside("base_rate", "learning_rate")
        self._refuse_beside("milestones", "lr_scheduler_type")
        self._refuse_beside("matrix_learning_rate", *ADAMW_ALONE)
        if self.data_seed is not None:
            raise UsageError("--data-seed has no effect: --seed also decides the order of the images.")
        if self.save_only_model:
            raise UsageError("--save-only-model would omit files that --resume needs; 'final' has the model alone.")
        by_fsdp = isinstance(self.fsdp_config, dict) and self.fsdp_config.get("activation_checkpointing")
        if by_fsdp and self.checkpoints_activations:
            raise UsageError(
                "activation_checkpointing is in --fsdp-config already; add --activation-checkpointing false."
            )
        if not 0.0 <= self.ema_decay < 1.0:
            raise UsageError(f"--ema-decay is {self.ema_decay}; expected from 0 to less than 1.")
        self._check_choices()
        if isinstance(self.fsdp, str) and self.fsdp.lower() in ("true", "false"):
            self.fsdp = True if self.fsdp.lower() == "true" else None  # type: ignore[assignment]
        if self.disable_tqdm is None:
            self.disable_tqdm = not sys.stderr.isatty()
        super().__post_init__()
        self.remove_unused_columns = False
        if self.base_rate is not None:
            self.learning_rate = self.base_rate * self.whole_batch / PAPER_BATCH
        if not 0.0 < self.learning_rate < math.inf:
            raise UsageError(f"the learning rate is {self.learning_rate}; expected above 0.")
        self._check_schedule()

    def _check_choices(self) -> None:
        """Raises an error for a value that is not among the choices of its setting."""
        for item in fields(self):
            # The type itself is tested too: if HfArgumentParser has run, it has narrowed the types of the fields.
            kinds = (item.type, *get_args(item.type))
            enums = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Enum)]
            choices = item.metadata.get("choices") or [str(one.value) for kind in enums for one in kind]
            value = getattr(self, item.name)
            if choices and value not in (*choices, item.default):
                raise UsageError(f"{as_flag(item.name)} is {value!r}; expected one of {', '.join(choices)}.")

    def _refuse_beside(self, decisive: str, *names: str) -> None:
        """Raises an error if settings are given that have no effect because of another one."""
        defaults = self.defaults()
        for name in names:
            if getattr(self, decisive) and getattr(self, name) != defaults[name]:
                raise UsageError(f"{as_flag(name)} has no effect with {as_flag(decisive)}; leave one of them out.")

    def _check_schedule(self) -> None:
        """Raises an error for invalid options of the schedule, before data and model are opened."""
        options: Any = self.lr_scheduler_kwargs or {}
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], self.learning_rate)
        try:
            # Without and with a warm-up: some options are used only in one of the two.
            for warmup_steps in (0, 1):
                make_scheduler(optimizer, self.lr_scheduler_type, options, self.milestones, warmup_steps, 2)
        except (TypeError, ValueError) as error:
            raise UsageError(f"the schedule cannot be made with --lr-scheduler-kwargs {options}: {error}") from error

    @property
    def should_save(self) -> bool:
        """Whether this process writes files; in a dry run none does."""
        return super().should_save and not self.dry_run

    @property
    def checkpoints_activations(self) -> bool:
        """Whether the backward pass computes blocks again; the setting has two names."""
        return bool(self.gradient_checkpointing or getattr(self, "activation_checkpointing", False))

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """The default of each setting."""
        return {
            item.name: item.default if item.default_factory is MISSING else item.default_factory()
            for item in fields(cls)
            if item.init
        }

    @property
    def run(self) -> Path:
        """Folder of the run."""
        return Path(str(self.output_dir))

    @property
    def whole_batch(self) -> int:
        """Images of a step, on all processes together."""
        return self.train_batch_size * self.gradient_accumulation_steps * self.world_size


def _plain_windows(said: Any) -> int | list[Any] | None:
    """Reads windows from text, or checks the notation of windows from Python or YAML. The number of stages is checked
    later, with the model."""
    windows = read_windows(said, "--window-size") if said is None or isinstance(said, str) else said
    if windows is None:
        return None
    try:
        as_windows("window_size", windows, len(windows) if isinstance(windows, (list, tuple)) and windows else 1)
    except ValueError as error:
        raise UsageError(
            f"--window-size is {windows!r}; expected tokens such as 8, 8x16 (height first), or one of these for each "
            "stage, 16,16,16,8; from Python and in a recipe also [8, 16] (height, width) or [16, 16, 16, 8]."
        ) from error
    return windows if isinstance(windows, int) else [list(one) if isinstance(one, tuple) else one for one in windows]


@dataclass
class PretrainSettings(PretrainOptions, RunSettings):
    """The settings of `swinv2 pretrain`."""

    options: ClassVar[type[RunOptions]] = PretrainOptions

    def __post_init__(self) -> None:
        check_crop_scale(self.crop_scale)
        super().__post_init__()
        # The Trainer computes a loss in evaluation only if the examples have these labels.
        self.label_names = ["bool_masked_pos"]
        self.prediction_loss_only = True


@dataclass
class FinetuneSettings(FinetuneOptions, RunSettings):
    """The settings of `swinv2 finetune`."""

    options: ClassVar[type[RunOptions]] = FinetuneOptions

    def __post_init__(self) -> None:
        without_effect = (name for name in self.defaults() if name not in (*PROBE_SETTINGS, "use_cpu"))
        self._refuse_beside("linear_probe", *without_effect)
        check_crop_scale(self.crop_scale)
        check_mixing(self.mixup, self.cutmix, self.per_device_train_batch_size, self.dataloader_drop_last)
        self._refuse_beside("crop_padding", "crop_scale")
        if self.class_weights not in ("", "balanced"):
            raise UsageError(f"--class-weights is {self.class_weights!r}; expected balanced, or nothing.")
        refuse_early_stopping_alone(self.early_stopping, self.load_best_model_at_end)
        if not self.lora and self.lora_rank != self.defaults()["lora_rank"]:
            raise UsageError("--lora-rank has no effect without --lora.")
        if self.lora_rank < 1:
            raise UsageError(f"--lora-rank is {self.lora_rank}; expected at least 1.")
        if self.lora and self.frozen_stages:
            raise UsageError("--lora freezes all stages; leave out --frozen-stages.")
        if self.lora and self.matrix_learning_rate:
            raise UsageError("--matrix-learning-rate trains matrices that --lora freezes; leave one of them out.")
        super().__post_init__()
        self.label_names = ["labels"]


def refuse_early_stopping_alone(patience: int, keeps_best: bool) -> None:
    """Raises an error for early stopping in a training that does not keep the best model."""
    if patience < 0:
        raise UsageError(f"--early-stopping is {patience}; expected at least 0.")
    if patience and not keeps_best:
        raise UsageError("--early-stopping needs --load-best-model-at-end: the last model is not the best one.")


def check_mixing(mixup: float, cutmix: float, batch_size: int, drops_last: bool) -> None:
    """Raises an error for invalid strengths of mixup and cutmix, and for batches of which no pairs can be made."""
    for name, value in {"mixup": mixup, "cutmix": cutmix}.items():
        if value < 0:
            raise UsageError(f"{as_flag(name)} is {value}; expected at least 0.")
    if (mixup or cutmix) and (batch_size % 2 or not drops_last):
        raise UsageError(
            "--mixup and --cutmix mix pairs of images: --per-device-train-batch-size must be even, and "
            "--dataloader-drop-last true."
        )


def check_crop_scale(scale: Sequence[float]) -> None:
    """Raises an error for an invalid range of crops."""
    if len(scale) != 2 or not 0.0 < scale[0] <= scale[1] <= 1.0:
        raise UsageError(f"--crop-scale is {list(scale)}; expected two shares, the smaller first, such as 0.08 1.0.")


Settings = TypeVar("Settings", bound=RunSettings)


def make_settings(kind: type[Settings], told: Mapping[str, Any]) -> Settings:
    """Makes settings from the values of `read_flags`.

    Raises:
        UsageError: A value is invalid, or conflicts with another one.
    """
    for name, value in told.items():
        if isinstance(value, str) and value.startswith("{"):
            try:
                json.loads(value)
            except ValueError as error:
                raise UsageError(f"{as_flag(name)} is {value!r}, which is not JSON: {error}") from error
    try:
        settings = kind(**told)
    # Errors of TrainingArguments; our own have the same text.
    except (ValueError, TypeError, ImportError) as error:
        raise UsageError(str(error)) from error
    defaults = kind.defaults()
    settings.told = dict(told)
    settings.given = {name: value for name, value in told.items() if value != defaults[name]}
    if "window_size" in settings.given:
        settings.given["window_size"] = settings.window_size
    return settings


def parse_settings(kind: type[Settings], flags: Sequence[str], command: str) -> Settings:
    """Makes settings of flags and the recipe of `--config`; see `read_flags` and `make_settings`."""
    return make_settings(kind, read_flags(kind.options, flags, command))
