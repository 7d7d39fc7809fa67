"""The segmenter or detector that a training starts from.

In: settings and the names of the classes. Out: a model in fp32 on the CPU: the backbone of any checkpoint, or a new
one, with a new head; or a saved segmenter or detector, whose head is kept if its classes are those of the data.
"""

import logging
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedConfig
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from swinv2.dense.answers import RGB
from swinv2.dense.backbone import backbone_of, load_backbone, set_image_size
from swinv2.dense.detectors import MODEL_TYPE, SwinRCNN
from swinv2.dense.heads import add_head, maps_of
from swinv2.dense.saved import SEGMENTATION, head_of, image_scale_of, load_dense, read_dense_config, task_of
from swinv2.errors import UsageError, few
from swinv2.heads import Swinv2Backbone
from swinv2.loading import label_names, load_processor
from swinv2.train.dense.settings import DenseSettings, crop_size
from swinv2.train.flags import as_flag
from swinv2.train.optim.groups import freeze_stages
from swinv2.train.start import choose_normalisation, is_new_model, new_config, read_object

logger = logging.getLogger(__name__)


def head_fields(settings: DenseSettings) -> dict[str, Any]:
    """The settings of the head that are given as JSON.

    Raises:
        UsageError: They are no JSON object.
    """
    return read_object(settings.head_fields, "--head-fields", '{"hidden_size": 256}')


def choose_dense_normalisation(settings: DenseSettings) -> None:
    """Sets mean and deviation of each channel if they are not given: those of the model to start from, whatever its
    head; ImageNet's for a new one, and for files of other libraries, which have none."""
    config = None if settings.image_mean or is_new_model(settings) else read_dense_config(settings.model)
    if config is not None and config["model_type"] == MODEL_TYPE:
        stored = config["torchvision"]
        settings.image_mean, settings.image_std = list(stored["image_mean"]), list(stored["image_std"])
    elif config is not None:
        processor = load_processor(settings.model)
        settings.image_mean, settings.image_std = list(processor.image_mean), list(processor.image_std)
    elif Path(settings.model).expanduser().is_file() and not settings.image_mean:
        settings.image_mean, settings.image_std = list(IMAGENET_DEFAULT_MEAN), list(IMAGENET_DEFAULT_STD)
        logger.warning(f"{settings.model} names no normalisation; ImageNet's is used (--image-mean, --image-std)")
    else:
        choose_normalisation(settings)


def choose_image_scale(settings: DenseSettings) -> None:
    """Sets the scale of the images, if it is neither given nor chosen, to that of the saved segmenter to start from."""
    config = None if is_new_model(settings) else read_dense_config(settings.model)
    if settings.task == SEGMENTATION and config is not None and "image_scale" not in settings.told:
        settings.image_scale = image_scale_of(config)


def model_to_train(settings: DenseSettings, names: tuple[str, ...]) -> Any:
    """Builds the model for the classes of the data.

    Args:
        settings: The settings.
        names: Names of the classes.

    Raises:
        UsageError: The checkpoint cannot be loaded or has not three channels, or a setting is impossible.
    """
    if settings.head == "upernet" and len(names) < 2:
        raise UsageError(
            f"the masks have one class, {few(names)}, and UperNet needs two; give the pixels around it a number of "
            "their own and a name, such as background."
        )
    model: Any = _saved_model(settings, names) or _with_new_head(settings, names)
    if backbone_of(model).config.num_channels != RGB:
        raise UsageError(f"--model {settings.model!r} has not three channels, which segmenters and detectors need.")
    model.config.dense_task = settings.task
    freeze_stages(model, settings.frozen_stages)
    return model


def _saved_model(settings: DenseSettings, names: tuple[str, ...]) -> nn.Module | None:
    """The saved segmenter or detector of --model if it has this task, this head and these classes; None if only its
    backbone can be used, or if it is another kind of checkpoint."""
    if is_new_model(settings):
        return None
    config = read_dense_config(settings.model)
    if config is None:
        return None
    model: Any = load_dense(settings.model)
    stored = tuple(label_names(model.config))
    head = head_of(config)
    if (task_of(config), head) != (settings.task, settings.head) or head_fields(settings):
        logger.warning(f"{settings.model} is a {head}; its backbone is taken, the head is new")
        return None
    if stored != names:
        logger.warning(
            f"{settings.model} has the classes {few(stored)}, the data {few(names)}; its backbone is taken, the head "
            "is new"
        )
        return None
    for name in ("drop_path_rate", "norm_feature_maps"):
        if name in settings.given:
            raise UsageError(
                f"{settings.model} goes on with its head and backbone as they are, so {as_flag(name)} has no effect; "
                "leave it out."
            )
    _resize(settings, model)
    if isinstance(model, SwinRCNN):
        transform: Any = model.detector.transform
        sizes = _side_lengths(settings) or (transform.min_size, transform.max_size)
        model.set_images(*sizes, settings.image_mean, settings.image_std)
    return model.train()


def _side_lengths(settings: DenseSettings) -> tuple[int, int] | None:
    """The shorter and the longest side of the images of an R-CNN; None if they are not given. The longest of one length
    is that of torchvision's default, 800 and 1333."""
    given = settings.image_size
    return (given[0], given[-1] if len(given) > 1 else given[0] * 5 // 3) if given else None


def _with_new_head(settings: DenseSettings, names: tuple[str, ...]) -> nn.Module:
    """A backbone, stored or new, with a new head."""
    maps = maps_of(settings.head)
    if is_new_model(settings):
        config = new_config(settings)
        config.norm_feature_maps = settings.norm_feature_maps
        config.set_output_features_output_indices(list(maps), None)
        backbone = Swinv2Backbone(config)
    else:
        try:
            backbone = load_backbone(
                settings.model,
                out_features=maps,
                norm_feature_maps=settings.norm_feature_maps,
                drop_path_rate=settings.drop_path_rate,
            )
        except UsageError as error:
            if "--trained-" not in str(error):
                raise
            raise UsageError(
                f"{error} Give it to `swinv2 convert {settings.model} FOLDER`, and FOLDER to --model."
            ) from error
        _resize(settings, backbone)
    fields = head_fields(settings)
    if settings.head in ("faster_rcnn", "mask_rcnn"):
        sides = _side_lengths(settings)
        sizes = {"min_size": sides[0], "max_size": sides[1]} if sides else {}
        normalisation = {"image_mean": list(settings.image_mean), "image_std": list(settings.image_std)}
        fields = {**normalisation, **sizes, **fields}
    return add_head(backbone, settings.head, names, **fields)


def _resize(settings: DenseSettings, model: nn.Module) -> None:
    """Adapts a stored backbone to the image size and windows of the settings."""
    size = crop_size(settings)
    if size is None and settings.window_size is None:
        return
    windows: Any = settings.window_size
    wanted: Any = size or backbone_of(model).config.image_size
    set_image_size(model, wanted, windows, stretch=settings.stretch_bias)


def check_resumed(settings: DenseSettings, names: tuple[str, ...]) -> None:
    """Raises an error unless the checkpoint that a run resumes from has exactly these classes, this task and this
    head."""
    checkpoint = str(settings.resume_from_checkpoint)
    config = read_dense_config(checkpoint)
    if config is None or (task_of(config), head_of(config)) != (settings.task, settings.head):
        what = "another model" if config is None else f"{head_of(config)} for {task_of(config)}"
        raise UsageError(
            f"{checkpoint} is {what}; expected {settings.head} for {settings.task}. Resume with the --task and --head "
            "of the checkpoint, or begin in another --output-dir."
        )
    stored = tuple(label_names(PreTrainedConfig.from_dict(config)))
    if stored != names:
        raise UsageError(
            f"{checkpoint} was trained with the classes {few(stored)}, the data has {few(names)} now. Restore the "
            "data, or begin a new run in another --output-dir with --model and this folder."
        )
