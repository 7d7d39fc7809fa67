"""What a training is told: transformers' `TrainingArguments`, and what Swin Transformer V2 needs beside them.

In: a recipe (YAML) and flags on top of it. Out: checked settings. This module opens no data and builds no model.
"""

import argparse
import difflib
import math
import os
import sys
from collections.abc import Collection, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from transformers import HfArgumentParser, TrainingArguments

from swinv2.errors import UsageError
from swinv2.lengths import as_windows
from swinv2.sizes import read_windows
from swinv2.train.data.augment import IMAGENET_MEAN, IMAGENET_STD
from swinv2.train.schedule import MULTISTEP, SHAPES, make_schedule

PAPER_BATCH = 512
"""Images for which the authors give learning rates; they scale them with the batch."""


def _option(default: Any, help: str) -> Any:
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass
class RunSettings(TrainingArguments):
    """What pre-training and fine-tuning have in common; the rest is transformers' `TrainingArguments`.

    The help texts, which `--help` prints, say what each setting means.
    """

    # What is other than in TrainingArguments.
    remove_unused_columns: bool = _option(False, "No effect: examples have the columns that the model takes.")
    logging_nan_inf_filter: bool = _option(False, "No effect: a loss that is no number stops the training.")
    learning_rate: float = _option(1e-3, "Highest learning rate, of the head; see --layer_decay and --base_rate.")
    weight_decay: float = _option(
        0.05, "Weight decay of matrices; never of norms, biases, logit_scale, position bias, positions, mask token."
    )
    max_grad_norm: float = _option(5.0, "Largest norm of all gradients together.")
    logging_steps: float = _option(50, "Steps between two lines of the log.")
    save_total_limit: int | None = _option(2, "Checkpoints that are kept.")
    dataloader_num_workers: int = _option(
        min(os.cpu_count() or 1, 8), "Processes that read pictures, for each process that trains; 0 for none."
    )
    dataloader_persistent_workers: bool = _option(False, "Whether these processes live longer than an epoch.")

    # Data
    data: str = _option(
        "",
        "Where the pictures are: a folder of class folders or of pictures, .parquet or .tar files, a data set's name.",
    )
    eval_data: str = _option("", "Where the pictures to evaluate are; --data unless given.")
    train_split: str = _option("train", "Name of the split to train on.")
    eval_split: str = _option("evaluation", "Name of the split to evaluate; 'evaluation' takes the first there is.")
    train_fraction: float = _option(1.0, "Share of the training pictures of each class to train on.")
    image_column: str | None = _option(None, "Column of the pictures, where it is not clear.")
    label_column: str | None = _option(None, "Column of the labels, where it is not clear.")
    streaming: bool = _option(False, "Read one picture after another instead of all files first; needs --max_steps.")
    shuffle_buffer: int = _option(10_000, "When streaming: from how many pictures the next one is drawn.")
    max_broken_images: int = _option(
        100, "Unreadable pictures that each process skips before it stops; each counts once."
    )
    image_mean: list[float] = _option(list(IMAGENET_MEAN), "Mean of each channel; as many as the model has.")
    image_std: list[float] = _option(list(IMAGENET_STD), "Standard deviation of each channel.")

    # Model
    model: str = _option("", "What to start from: a size such as tiny, a model's folder, or its name on the hub.")
    model_fields: dict[str, Any] | str | None = _option(
        None, "Fields of Swinv2Config to change, as JSON; of a new model all that differ from the defaults."
    )
    image_size: list[int] = _option(
        [], "Image size in pixels, one length or height and width; the model's unless given."
    )
    window_size: int | str | list[Any] | tuple[Any, ...] | None = _option(
        None, "Windows in tokens: 8, 8x16 (height first), or one for each stage: 16,16,16,8; the model's unless given."
    )
    stretch_bias: bool = _option(False, "Stretch the position bias over a changed window instead of extrapolating it.")
    drop_path_rate: float | None = _option(None, "Stochastic depth of the last block; the model's unless given.")
    frozen_stages: int = _option(0, "First stages that do not learn: 1 the patches, 2 the first stage too ...")

    # Optimisation
    base_rate: float | None = _option(
        None, f"Learning rate for {PAPER_BATCH} images; the real one is it times the whole batch / {PAPER_BATCH}."
    )
    matrix_learning_rate: float = _option(
        0.0, "Learning rate of Muon for the matrices, AdamW (0.9, 0.99) for the rest; 0: no Muon."
    )
    layer_decay: float = _option(1.0, "Factor of the learning rate from each layer to the one before it.")
    schedule: str | None = _option(
        None, f"The authors' schedule, {', '.join(SHAPES)}; --lr_scheduler_type unless given."
    )
    warmup_learning_rate: float = _option(0.0, "With --schedule: learning rate of the first step of the warm-up.")
    min_learning_rate: float = _option(0.0, "With --schedule cosine or linear: learning rate at the end.")
    milestones: list[float] = _option([], "With --schedule multistep: shares of the training at which the rate drops.")
    milestone_factor: float = _option(0.1, "With --schedule multistep: factor of each drop.")
    ema_decay: float = _option(0.0, "Decay of an average of the weights, which is evaluated and kept; 0 for none.")

    # Run
    resume: bool = _option(False, "Go on from the newest sound checkpoint in --output_dir, if there is one.")
    dry_run: bool = _option(False, "Print what would be done, and do nothing.")
    as_json: bool = _option(False, "With --dry_run, or at the end: print one JSON object.")

    # What was told, recipe and flags together.
    given: dict[str, Any] = field(default_factory=dict[str, Any], init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("data", "model"):
            if not getattr(self, name):
                raise UsageError(f"--{name} is missing; {self._help(name)}")
        if not self.output_dir:
            raise UsageError("--output_dir is missing; expected a folder for checkpoints, logs and the trained model.")
        if self.streaming and self.max_steps <= 0:
            raise UsageError("--streaming needs --max_steps: nobody knows how many pictures will come.")
        if self.streaming and self.train_fraction != 1.0:
            raise UsageError("--train_fraction needs all labels first; leave out --streaming.")
        if len(self.image_size) > 2:
            raise UsageError(f"--image_size is {self.image_size}; expected one length, or height and width.")
        # Flags are read as text; what is no window is refused here.
        self.window_size = self.windows
        if self.schedule is None:
            for name in ("warmup_learning_rate", "min_learning_rate", "milestones"):
                if getattr(self, name):
                    raise UsageError(f"--{name} has no effect without --schedule.")
        if self.schedule is not None and self.schedule not in SHAPES:
            raise UsageError(f"--schedule is {self.schedule!r}; expected one of {', '.join(SHAPES)}.")
        if self.base_rate is not None and self.learning_rate != self.defaults()["learning_rate"]:
            raise UsageError("--learning_rate has no effect beside --base_rate; leave one of them out.")
        if self.milestone_factor != 0.1 and self.schedule != MULTISTEP:
            raise UsageError("--milestone_factor has no effect without --schedule multistep.")
        own = ("layer_decay", "optim", "adam_beta1", "adam_beta2", "adam_epsilon", "base_rate")
        self._refuse_changed(own, "beside --matrix_learning_rate", bool(self.matrix_learning_rate))
        self._refuse_changed(("shuffle_buffer",), "without --streaming", not self.streaming)
        self._refuse_changed(("data_seed",), "beside --seed, which decides the order too")
        if self.save_only_model:
            raise UsageError("--save_only_model would leave out what --resume needs; the model alone is in 'final'.")
        by_fsdp = isinstance(self.fsdp_config, dict) and self.fsdp_config.get("activation_checkpointing")
        if by_fsdp and self.checkpoints_activations:
            raise UsageError(
                "activation_checkpointing is in --fsdp_config already; add --activation_checkpointing false."
            )
        if not 0.0 <= self.ema_decay < 1.0:
            raise UsageError(f"--ema_decay is {self.ema_decay}; expected from 0 to less than 1.")
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
        if self.schedule is not None:
            self._check_schedule(self.schedule)

    def _refuse_changed(self, names: Sequence[str], why: str, when: bool = True) -> None:
        """Refuses settings that would have no effect."""
        defaults = self.defaults()
        for name in names:
            if when and getattr(self, name) != defaults[name]:
                raise UsageError(f"--{name} has no effect {why}; leave one of them out.")

    def _check_schedule(self, schedule: str) -> None:
        self._refuse_changed(("lr_scheduler_type", "lr_scheduler_kwargs"), "beside --schedule")
        # What it refuses whatever the number of steps is, before data and model are opened.
        make_schedule(
            schedule,
            total_steps=2,
            warmup_steps=1 if self.warmup_steps else 0,
            start=self.warmup_learning_rate / self.learning_rate,
            floor=self.min_learning_rate / self.learning_rate,
            milestones=self.milestones,
            drop=self.milestone_factor,
        )

    @property
    def checkpoints_activations(self) -> bool:
        """Whether the Trainer computes blocks again in the backward pass, by either name of the setting."""
        return bool(self.gradient_checkpointing or getattr(self, "activation_checkpointing", False))

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """What each setting is unless told."""
        return {
            item.name: item.default if item.default_factory is MISSING else item.default_factory()
            for item in fields(cls)
            if item.init
        }

    @property
    def windows(self) -> int | list[Any] | None:
        """What `window_size` says, as the configuration takes it; how many stages there are, the model shows."""
        return _settle_windows(self.window_size)

    @property
    def whole_batch(self) -> int:
        """Images of a step, on all processes together."""
        return self.train_batch_size * self.gradient_accumulation_steps * self.world_size

    @classmethod
    def _help(cls, name: str) -> str:
        return next(str(item.metadata["help"]) for item in fields(cls) if item.name == name)


def _settle_windows(said: Any) -> int | list[Any] | None:
    """Reads windows from text, and holds those of Python and YAML to the forms that the configuration takes."""
    windows = read_windows(said, "--window_size") if said is None or isinstance(said, str) else said
    if windows is None:
        return None
    try:
        as_windows("window_size", windows, len(windows) if isinstance(windows, (list, tuple)) and windows else 1)
    except ValueError as error:
        raise UsageError(
            f"--window_size is {windows!r}; expected tokens such as 8, 8x16 (height first), or one of these for each "
            "stage, 16,16,16,8; from Python and in a recipe also [8, 16] (height, width) or [16, 16, 16, 8]."
        ) from error
    return windows if isinstance(windows, int) else [list(one) if isinstance(one, tuple) else one for one in windows]


Settings = TypeVar("Settings", bound=RunSettings)


class _Refusing(argparse.ArgumentParser):
    """Refuses with a sentence instead of a usage text of three hundred lines."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}. `--help` lists all flags.")


class _Parser(_Refusing, HfArgumentParser):
    """Knows lists, booleans and enumerations of data classes."""


OLDER_NAMES = {
    "activation_checkpointing": "gradient_checkpointing",
    "activation_checkpointing_kwargs": "gradient_checkpointing_kwargs",
}
"""Settings of transformers, and what its older versions call them."""


def parse_settings(kind: type[Settings], flags: Sequence[str], command: str) -> Settings:
    """Reads flags, and the recipe that `--config` names below them.

    Args:
        kind: What to build.
        flags: As they stand on the command line.
        command: What the help text calls the command.

    Raises:
        UsageError: There is no such recipe, setting or value.
        SystemExit: `--help` was given, and printed.
    """
    first = _Refusing(add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path, default=None, help="A recipe: a YAML file of the settings below.")
    known, rest = first.parse_known_args(list(flags))
    data_class: Any = kind
    parser = _Parser(data_class, prog=command, parents=[first], allow_abbrev=False)
    recipe = argparse.Namespace()
    if known.config is not None:
        recipe = _understand(read_recipe(known.config, kind), parser, known.config)
    names = _names(kind)
    rest = [f"--{_known_as(flag[2:], names)}" if flag.startswith("--") else flag for flag in rest]
    namespace, unknown = parser.parse_known_args(rest, recipe)
    if unknown:
        flag = unknown[0].split("=")[0]
        close = difflib.get_close_matches(flag, [f"--{name}" for name in names], 1)
        hint = f"; did you mean {close[0]}?" if close else "."
        raise UsageError(f"there is no setting {flag!r}{hint} `--help` lists all flags.")
    untold, _ = parser.parse_known_args([])
    values = {name: getattr(namespace, name) for name in kind.defaults()}
    try:
        settings = kind(**values)
        told = {name: value for name, value in values.items() if value != getattr(untold, name)}
        settings.given = told | ({"window_size": settings.window_size} if "window_size" in told else {})
        return settings
    except UsageError:
        raise
    # What TrainingArguments refuses.
    except (ValueError, TypeError, ImportError) as error:
        raise UsageError(str(error)) from error


def read_recipe(path: Path, kind: type[RunSettings]) -> dict[str, Any]:
    """Reads a recipe.

    Args:
        path: The YAML file.
        kind: The settings it is for.

    Raises:
        UsageError: It cannot be read, is no mapping, or has a setting that there is not.
    """
    try:
        recipe: Any = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"the recipe {path} cannot be read: {error}") from error
    if not isinstance(recipe, dict):
        raise UsageError(f"the recipe {path} is no list of settings; expected lines such as 'learning_rate: 1e-3'.")
    known = _names(kind)
    recipe = {_known_as(name, known): value for name, value in recipe.items()}
    for name in recipe:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, 1)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            raise UsageError(f"the recipe {path} has a setting {name!r} that there is not{hint}")
    return recipe


def _names(kind: type[RunSettings]) -> list[str]:
    """Of all settings."""
    return [item.name for item in fields(kind) if item.init]


def _known_as(name: Any, known: Collection[str]) -> Any:
    """What this version of transformers calls a setting; `name` may be followed by "=" and a value."""
    bare, *value = str(name).split("=", 1)
    older = OLDER_NAMES.get(bare, bare)
    return "=".join([older, *value]) if older in known and bare not in known else name


def _understand(recipe: dict[str, Any], parser: _Parser, path: Path) -> argparse.Namespace:
    """Reads what a recipe says as if it were flags: YAML takes 1e-3, without a point, for text."""
    # What no flag can say, null, mappings and a list of windows, is taken as it is.
    bare = {
        name: value
        for name, value in recipe.items()
        if value is None
        or isinstance(value, dict)
        or value == []
        or (name == "window_size" and isinstance(value, list))
    }
    flags: list[str] = []
    for name, value in recipe.items():
        if name in bare:
            continue
        if isinstance(value, list):
            flags += [f"--{name}", *map(str, value)]
        else:
            flags.append(f"--{name}={value}")
    try:
        said = parser.parse_args(flags)
    except UsageError as error:
        raise UsageError(f"the recipe {path}: {error}") from error
    return argparse.Namespace(**{name: bare.get(name, getattr(said, name)) for name in recipe})


@dataclass
class PretrainSettings(RunSettings):
    """What `swinv2 pretrain` is told beside `RunSettings`."""

    mask_ratio: float = _option(0.6, "Share of the blocks that are masked.")
    mask_block: int = _option(32, "Side of a masked block in pixels; a multiple of the patch size.")
    norm_targets: int = _option(47, "Draw pixels normalised by the square of so many around each; 0: as they are.")
    crop_scale: list[float] = _option([0.67, 1.0], "Smallest and largest share of the area that a crop takes.")
    grid_images: int = _option(
        8, "Images in the picture of reconstructions, which each checkpoint draws, except under FSDP; 0: none."
    )

    def __post_init__(self) -> None:
        if self.label_smoothing_factor:
            raise UsageError("--label_smoothing_factor has no effect in pre-training: there are no labels.")
        _check_scale(self.crop_scale)
        super().__post_init__()
        # What the Trainer takes for labels: with them it computes a loss in evaluation.
        self.label_names = ["bool_masked_pos"]
        self.prediction_loss_only = True


@dataclass
class FinetuneSettings(RunSettings):
    """What `swinv2 finetune` is told beside `RunSettings`."""

    label_names_file: str = _option("", "A file, the name of a class on each line, where the data does not know them.")
    head_map: str = _option("", "A file, on each line a class of --model whose row of the classifier a class takes.")
    auto_augment: str = _option("", "timm's description of RandAugment; the authors' is rand-m9-mstd0.5-inc1.")
    color_jitter: float = _option(0.0, "Strength of changes of colour.")
    erase_probability: float = _option(0.0, "Probability of erasing a random rectangle; the authors' is 0.25.")
    crop_scale: list[float] = _option([0.08, 1.0], "Smallest and largest share of the area that a crop takes.")
    crop_padding: int = _option(0, "Crop after reflecting so many pixels at each edge instead of crops of the area.")
    crop_ratio: float | None = _option(
        None, "In evaluation: share of the shorter side that the centre takes; unless given, pictures are resized."
    )
    mixup: float = _option(0.0, "Alpha of mixup; the authors' is 0.8.")
    cutmix: float = _option(0.0, "Alpha of cutmix; the authors' is 1.0.")
    lora: bool = _option(False, "Learn low-rank changes of queries and values, and the classifier; nothing else.")
    lora_rank: int = _option(16, "Rank of --lora.")

    def __post_init__(self) -> None:
        _check_scale(self.crop_scale)
        for name in ("mixup", "cutmix"):
            if getattr(self, name) < 0:
                raise UsageError(f"--{name} is {getattr(self, name)}; expected at least 0.")
        if (self.mixup or self.cutmix) and (self.per_device_train_batch_size % 2 or not self.dataloader_drop_last):
            raise UsageError(
                "--mixup and --cutmix mix pairs: --per_device_train_batch_size must be even, and "
                "--dataloader_drop_last true."
            )
        if self.crop_padding and list(self.crop_scale) != self.defaults()["crop_scale"]:
            raise UsageError("--crop_scale has no effect beside --crop_padding; leave one of them out.")
        if not self.lora and self.lora_rank != self.defaults()["lora_rank"]:
            raise UsageError("--lora_rank has no effect without --lora.")
        if self.lora_rank < 1:
            raise UsageError(f"--lora_rank is {self.lora_rank}; expected at least 1.")
        if self.lora and self.frozen_stages:
            raise UsageError("--lora freezes all stages by itself; leave out --frozen_stages.")
        if self.lora and self.matrix_learning_rate:
            raise UsageError("--matrix_learning_rate is for the network's own matrices; leave it out beside --lora.")
        super().__post_init__()
        self.label_names = ["labels"]


def _check_scale(scale: Sequence[float]) -> None:
    if len(scale) != 2 or not 0.0 < scale[0] <= scale[1] <= 1.0:
        raise UsageError(f"--crop_scale is {list(scale)}; expected two shares, the smaller first, such as 0.08 1.0.")
