"""What `swinv2 pretrain` and `swinv2 finetune` can be told beside transformers' `TrainingArguments`.

In: nothing. Out: every setting with its type, its default and its help. `flags.py` reads them from the command line,
`settings.py` adds those of transformers and checks all of them. This module imports neither torch nor transformers.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from swinv2.errors import UsageError

PAPER_BATCH = 512
"""Images for which the authors give learning rates; they scale them with the batch."""


def _option(default: Any, help: str) -> Any:
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass
class RunOptions:
    """What pre-training and fine-tuning have in common. The help texts, which `--help` prints, say what each means."""

    # Data
    data: str = _option("", "A folder of class folders or of images, .parquet or .tar files, or a data set's name.")
    eval_data: str = _option("", "Where the images to evaluate are; --data unless given.")
    train_split: str = _option("train", "Name of the split to train on.")
    eval_split: str = _option("evaluation", "Name of the split to evaluate; 'evaluation' takes the first there is.")
    train_fraction: float = _option(1.0, "Share of the training images of each class to train on.")
    image_column: str | None = _option(None, "Column of the images, where it is not clear.")
    label_column: str | None = _option(None, "Column of the labels, where it is not clear.")
    streaming: bool = _option(False, "Read one image after another instead of all files first; needs --max-steps.")
    shuffle_buffer: int = _option(10_000, "When streaming: from how many images the next one is drawn.")
    max_broken_images: int = _option(100, "Unreadable images, each counted once, after which a process stops.")
    image_mean: list[float] = _option([0.485, 0.456, 0.406], "Mean of each channel; as many as the model has.")
    image_std: list[float] = _option([0.229, 0.224, 0.225], "Standard deviation of each channel.")

    # Model
    model: str = _option("", "What to start from: a size such as tiny, a model's folder, or its name on the hub.")
    model_fields: dict[str, Any] | str | None = _option(None, "Fields of Swinv2Config that differ, as JSON.")
    image_size: list[int] = _option([], "Pixels: one length, or height and width; the model's unless given.")
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
        0.0, "Learning rate of Muon for the matrices, AdamW for the rest; 0: no Muon."
    )
    layer_decay: float = _option(1.0, "Factor of the learning rate from each layer to the one before it.")
    milestones: list[float] = _option(
        [], "Shares of the training at which the rate drops, by gamma of --lr-scheduler-kwargs or a tenth."
    )
    ema_decay: float = _option(0.0, "Decay of an average of the weights, which is evaluated and kept; 0 for none.")

    # Run
    resume: bool = _option(False, "Resume from the newest valid checkpoint in --output-dir, if there is one.")
    dry_run: bool = _option(False, "Print what would be done, and do nothing.")
    as_json: bool = _option(False, "With --dry-run, or at the end: print one JSON object.")

    # What is other than in TrainingArguments.
    remove_unused_columns: bool = _option(False, "No effect: examples have the columns that the model takes.")
    logging_nan_inf_filter: bool = _option(False, "No effect: a NaN loss stops the training.")
    learning_rate: float = _option(1e-3, "Highest learning rate, of the head; see --layer-decay and --base-rate.")
    weight_decay: float = _option(
        0.05, "Weight decay of matrices; never of norms, biases, logit_scale, position bias, positions, mask token."
    )
    max_grad_norm: float = _option(5.0, "Largest norm of all gradients together.")
    logging_steps: float = _option(50, "Steps between two lines of the log.")
    save_total_limit: int | None = _option(2, "Checkpoints that are kept.")
    dataloader_num_workers: int = _option(
        min(os.cpu_count() or 1, 8), "Processes that read images, for each training process; 0 for none."
    )
    dataloader_persistent_workers: bool = _option(False, "Whether these processes live longer than an epoch.")


@dataclass
class PretrainOptions(RunOptions):
    """What `swinv2 pretrain` takes besides `RunOptions`."""

    mask_ratio: float = _option(0.6, "Share of the blocks that are masked.")
    mask_block: int = _option(32, "Side of a masked block in pixels; a multiple of the patch size.")
    norm_targets: int = _option(
        47, "Reconstruct pixels normalised by the square of this many pixels around each; 0: plain pixels."
    )
    crop_scale: list[float] = _option([0.67, 1.0], "Smallest and largest share of the area that a crop takes.")
    grid_images: int = _option(
        8, "Images in the figure of reconstructions, which each checkpoint draws, except under FSDP; 0: none."
    )


@dataclass
class FinetuneOptions(RunOptions):
    """What `swinv2 finetune` takes besides `RunOptions`."""

    label_names_file: str = _option("", "A file, the name of a class on each line, where the data does not know them.")
    head_map: str = _option("", "A file, on each line a class of --model whose row of the classifier a class takes.")
    auto_augment: str = _option("", "timm's description of RandAugment; the authors' is rand-m9-mstd0.5-inc1.")
    color_jitter: float = _option(0.0, "Strength of changes of colour.")
    erase_probability: float = _option(0.0, "Probability of erasing a random rectangle; the authors' is 0.25.")
    crop_scale: list[float] = _option([0.08, 1.0], "Smallest and largest share of the area that a crop takes.")
    crop_padding: int = _option(
        0, "Pad each edge with this many reflected pixels and crop, instead of crops of the area."
    )
    crop_ratio: float | None = _option(
        None, "In evaluation: share of the shorter side that the centre takes; unless given, images are resized."
    )
    mixup: float = _option(0.0, "Alpha of mixup; the authors' is 0.8.")
    cutmix: float = _option(0.0, "Alpha of cutmix; the authors' is 1.0.")
    lora: bool = _option(False, "Learn low-rank changes of queries and values, and the classifier; nothing else.")
    lora_rank: int = _option(16, "Rank of --lora.")


def refuse_missing(told: Mapping[str, Any]) -> None:
    """Refuses settings without what every training needs.

    Raises:
        UsageError: There is no data, no model or no folder for the run.
    """
    needed = {
        "data": "where the images are",
        "model": "what to start from: a size such as tiny, a model's folder, or its name on the hub",
        "output_dir": "a folder for checkpoints, logs and the trained model",
    }
    for name, expected in needed.items():
        if not told.get(name):
            raise UsageError(f"--{name.replace('_', '-')} is missing; expected {expected}.")
