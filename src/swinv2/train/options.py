"""The settings of `swinv2 pretrain` and `swinv2 finetune` that transformers' `TrainingArguments` does not have.

In: nothing. Out: every setting with its type, default and help. `flags.py` reads the settings from the command line;
`settings.py` adds transformers' settings and checks all. This module imports neither torch nor transformers.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from swinv2.errors import UsageError

PAPER_BATCH = 512
"""The batch for which the authors give learning rates; they scale the rate with the batch."""


def _option(default: Any, help: str) -> Any:
    """A setting of a training: its default and its help."""
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


_MODELS = (
    "a folder, or a name on the hub; with new weights a preset such as tiny, or new, whose shape are --model-fields"
)


@dataclass
class RunOptions:
    """The settings that pre-training and fine-tuning share. The help texts say what they mean."""

    # Data
    data: str = _option("", "A folder of class folders or of images, .parquet or .tar files, or a data set's name.")
    eval_data: str = _option("", "Source of the images to evaluate; default: --data.")
    train_split: str = _option("train", "Name of the split to train on.")
    eval_split: str = _option(
        "evaluation", "Split to evaluate; 'evaluation': the first of validation, val, valid, test."
    )
    held_out_share: float = _option(
        0.1, "Share of the training images of each class that is set aside if there is no split to evaluate."
    )
    train_fraction: float = _option(1.0, "Share of the training images of each class to train on.")
    image_column: str | None = _option(None, "Column of the images, if it cannot be found automatically.")
    label_column: str | None = _option(None, "Column of the labels, if it cannot be found automatically.")
    streaming: bool = _option(False, "Read images one by one instead of all files first; needs --max-steps.")
    shuffle_buffer: int = _option(10_000, "With --streaming: number of images from which the next one is drawn.")
    max_broken_images: int = _option(100, "Number of unreadable images that a process may meet, each counted once.")
    image_mean: list[float] = _option([], "Mean of each channel; default: the model's own, ImageNet's for a new one.")
    image_std: list[float] = _option([], "Standard deviation of each channel; default: as for --image-mean.")

    # Model
    model: str = _option("", f"Model to start from: {_MODELS}.")
    model_fields: dict[str, Any] | str | None = _option(None, "Fields of Swinv2Config to change, as JSON.")
    image_size: list[int] = _option([], "Image size in pixels: one length, or height and width; default: the model's.")
    window_size: int | str | list[Any] | tuple[Any, ...] | None = _option(
        None, "Windows in tokens: 8, 8x16 (height first), or one for each stage: 16,16,16,8; default: the model's."
    )
    stretch_bias: bool = _option(False, "Stretch the position bias over a changed window instead of extrapolating it.")
    drop_path_rate: float | None = _option(None, "Drop path rate of the last block; default: the model's.")
    frozen_stages: int = _option(
        0, "First stages that do not learn; 1: the patch embedding, 2: the first stage too ..."
    )

    # Optimisation
    base_rate: float | None = _option(
        None, f"Learning rate for a batch of {PAPER_BATCH}; the rate is this * batch of all processes / {PAPER_BATCH}."
    )
    matrix_learning_rate: float = _option(
        0.0, "Learning rate of Muon for the matrices; AdamW trains the rest. 0: no Muon."
    )
    layer_decay: float = _option(1.0, "Factor of the learning rate from each layer to the one before it.")
    backbone_rate: float = _option(
        1.0, "Factor of the learning rate of all layers before the head; the paper's for detectors is 0.1."
    )
    milestones: list[float] = _option(
        [], "Shares of the training after which the rate drops, by the factor gamma of --lr-scheduler-kwargs or 0.1."
    )
    ema_decay: float = _option(0.0, "Decay of an average of the weights, which becomes the final model; 0: no average.")

    # Run
    resume: bool = _option(False, "Resume from the newest valid checkpoint in --output-dir, if there is one.")
    dry_run: bool = _option(False, "Print a preview of the training, and do nothing.")
    as_json: bool = _option(False, "Print the preview of --dry-run, or the results, as one JSON object.")

    # Settings with other defaults or meanings than in TrainingArguments.
    remove_unused_columns: bool = _option(False, "No effect: examples have only the columns that the model takes.")
    logging_nan_inf_filter: bool = _option(False, "No effect: a NaN loss stops the training.")
    learning_rate: float = _option(1e-3, "Highest learning rate, that of the head; see --layer-decay and --base-rate.")
    weight_decay: float = _option(
        0.05, "Weight decay of matrices; norms, biases, logit_scale, position bias, positions, mask token never decay."
    )
    max_grad_norm: float = _option(5.0, "Largest norm of all gradients together; larger ones are scaled down.")
    logging_steps: float = _option(50, "Steps between two lines of the log.")
    save_total_limit: int | None = _option(2, "Number of checkpoints to keep.")
    dataloader_num_workers: int = _option(
        min(os.cpu_count() or 1, 8), "Workers that read images, for each training process; 0: it reads by itself."
    )
    dataloader_persistent_workers: bool = _option(False, "Whether these workers live longer than an epoch.")


@dataclass
class PretrainOptions(RunOptions):
    """The settings of `swinv2 pretrain`."""

    mask_ratio: float = _option(0.6, "Share of the blocks that are masked.")
    mask_block: int = _option(32, "Side of a masked block in pixels; a multiple of the patch size.")
    norm_targets: int = _option(
        47, "Normalise the target pixels by the statistics of the square of this side around each; 0: plain pixels."
    )
    crop_scale: list[float] = _option([0.67, 1.0], "Smallest and largest share of the area that a crop takes.")
    grid_images: int = _option(
        8, "Images in the figure of reconstructions, drawn at each checkpoint except under FSDP; 0: no figure."
    )


@dataclass
class FinetuneOptions(RunOptions):
    """The settings of `swinv2 finetune`."""

    model: str = _option("", f"Model to start from: {_MODELS}; default: the model that ships with the package.")
    choose_settings: bool = _option(
        False, "Choose each setting that is not given from the data and the model; true without --config."
    )
    label_names_file: str = _option("", "A file with the name of a class on each line, if the data has no names.")
    head_map: str = _option(
        "",
        "A file: line i has the number of the class of --model whose classifier row initialises class i, or such a "
        "number and, after a space, the name of the class that it initialises.",
    )
    auto_augment: str = _option("", "timm's description of RandAugment; the authors' is rand-m9-mstd0.5-inc1.")
    color_jitter: float = _option(0.0, "Strength of random changes of brightness, contrast and saturation.")
    erase_probability: float = _option(0.0, "Probability of erasing a random rectangle; the authors' is 0.25.")
    crop_scale: list[float] = _option([0.08, 1.0], "Smallest and largest share of the area that a crop takes.")
    flip: float = _option(0.5, "Probability of a horizontal flip.")
    crop_padding: int = _option(
        0, "Pad each edge with this many reflected pixels and crop the image size; replaces --crop-scale. 0: off."
    )
    crop_ratio: float | None = _option(
        None, "In evaluation: side of the centre crop as a share of the shorter side; default: resize, no crop."
    )
    mixup: float = _option(0.0, "Alpha of mixup; the authors' is 0.8.")
    cutmix: float = _option(0.0, "Alpha of cutmix; the authors' is 1.0.")
    linear_probe: bool = _option(
        False, "Freeze the model, compute the features of all images once, and fit the classifier alone to them."
    )
    class_weights: str = _option(
        "", "balanced: an image of a rare class counts more in the loss, so that all classes count the same."
    )
    early_stopping: int = _option(
        0, "Stop after this many evaluations without a better one; needs --load-best-model-at-end. 0: off."
    )
    lora: bool = _option(False, "LoRA: learn only low-rank changes of queries and values, and the classifier.")
    lora_rank: int = _option(16, "Rank of --lora.")


@dataclass
class DenseOptions(RunOptions):
    """The settings of `swinv2 finetune --task segmentation`, `instances` and `detection`."""

    task: str = field(
        default="",
        metadata={
            "help": "segmentation: classes of pixels; instances: objects with masks; detection: objects with boxes.",
            "choices": ["segmentation", "instances", "detection"],
        },
    )
    data: str = _option(
        "",
        "Images with masks of classes, or with objects (COCO JSON, YOLO, Pascal VOC, metadata.jsonl): a folder, a file "
        "or a data set's name.",
    )
    model: str = _option(
        "",
        f"Model whose backbone to start from, or a segmenter or detector: {_MODELS}; default: the model that ships.",
    )
    choose_settings: bool = _option(
        False, "Choose each setting that is not given from the data and the model; true without --config."
    )
    head: str = _option(
        "",
        "upernet or mask2former for segmentation, mask_rcnn or mask2former for instances, faster_rcnn or rt_detr for "
        "detection; default: the first.",
    )
    head_fields: dict[str, Any] | str | None = _option(
        None, "Settings of the head to change, as JSON; see swinv2.dense.from_backbone."
    )
    norm_feature_maps: bool = _option(True, "Whether each map of the backbone gets a layer norm.")
    image_size: list[int] = _option(
        [],
        "In pixels. segmentation: size of the crops; R-CNN: shorter side, and longest side, of the resized images; "
        "other heads: size of the resized images. Default: the model's.",
    )
    label_names_file: str = _option("", "A file with the name of a class on each line, if the data has no names.")
    mask_column: str | None = _option(None, "Column of the masks, if it cannot be found automatically.")
    ignore_index: int | None = _option(
        None, "Value of pixels that do not count in a mask; default: 255, or what the layout of the data says."
    )
    reduce_labels: bool | None = _option(
        None, "Whether 0 in a mask is no class and the others begin at 1; default: what the layout of the data says."
    )
    image_scale: float = _option(
        1.0, "segmentation: factor of the size of the images that the segmenter answers for; see --scale-range."
    )
    scale_range: list[float] = _option([1.0, 1.0], "Smallest and largest random factor of the size of an image.")
    most_of_a_class: float = _option(
        0.75, "segmentation: of ten random crops, the first one with at most this share of one class."
    )
    flip: float = _option(0.5, "Probability of a horizontal flip.")
    color_jitter: float = _option(0.0, "Strength of random changes of brightness, contrast, saturation and hue.")
    class_weights: str = _option(
        "", "balanced: pixels of a rare class count more in the loss (segmentation with upernet)."
    )
    evaluation_window: list[int] = _option(
        [], "segmentation: side in pixels of the windows that slide over an image in evaluation; default: no windows."
    )
    early_stopping: int = _option(
        0, "Stop after this many evaluations without a better one; needs --load-best-model-at-end. 0: off."
    )


@dataclass
class VideoOptions(RunOptions):
    """The settings of `swinv2 finetune --task video`."""

    task: str = field(default="", metadata={"help": "video: classes of videos.", "choices": ["video"]})
    data: str = _option(
        "",
        "A folder of class folders with videos; a list, which is a CSV file with the columns path and label, and if "
        "wanted start and end in seconds, or has lines 'path label'; or a folder with such a list for each split.",
    )
    model: str = _option(
        "",
        f"Model of videos to start from, or of images, which is inflated: {_MODELS}; default: the model that ships.",
    )
    choose_settings: bool = _option(
        False, "Choose each setting that is not given from the data and the model; true without --config."
    )
    label_names_file: str = _option("", "A file with the name of a class on each line, if the labels are numbers.")
    num_frames: int | None = _option(None, "Frames of a clip; default: the model's, 32 for a model of images.")
    frame_stride: int | None = _option(
        None,
        "Frames of a video from one frame of a clip to the next; 0: the frames are spread over the whole video. "
        "Default: the model's, 2 for a model of images.",
    )
    window_frames: int | None = _option(
        None,
        "Length of the windows in time, in tokens of --tubelet-size frames; default: the model's, 8 for a model of "
        "images.",
    )
    tubelet_size: int | None = _option(None, "Frames of a patch, for a model of images or a new one; default: 2.")
    classifier_dropout: float | None = _option(None, "Dropout before the classifier; default: the model's.")
    crop_scale: list[float] = _option([0.08, 1.0], "Smallest and largest share of the area that a crop takes.")
    flip: float = _option(0.5, "Probability of a horizontal flip; 0 if the classes tell left from right.")
    reverse: float = _option(0.0, "Probability of playing a clip backward.")
    color_jitter: float = _option(0.0, "Strength of random changes of brightness, contrast and saturation.")
    rand_augment: list[int] = _option(
        [], "Operations and strength (0 to 30) of torchvision's RandAugment, such as 4 7; default: none."
    )
    erase_probability: float = _option(0.0, "Probability of erasing a random rectangle in all frames of a clip.")
    mixup: float = _option(0.0, "Alpha of mixup.")
    cutmix: float = _option(0.0, "Alpha of cutmix.")
    eval_clips: int = _option(1, "Clips of each video in evaluation, spread evenly.")
    eval_crops: int = _option(1, "Crops of each clip in evaluation, spread along the longer side.")
    class_weights: str = _option(
        "", "balanced: a video of a rare class counts more in the loss, so that all classes count the same."
    )
    early_stopping: int = _option(
        0, "Stop after this many evaluations without a better one; needs --load-best-model-at-end. 0: off."
    )


def refuse_missing(told: Mapping[str, Any], may_lack: Sequence[str] = ()) -> None:
    """Raises a `UsageError` if `data`, `model` or `output_dir` is missing, unless it is in `may_lack`."""
    needed = {
        "data": "the source of the images",
        "model": f"the model to start from: {_MODELS}",
        "output_dir": "a folder for checkpoints, logs and the trained model",
    }
    for name, expected in needed.items():
        if not told.get(name) and name not in may_lack:
            raise UsageError(f"--{name.replace('_', '-')} is missing; expected {expected}.")
