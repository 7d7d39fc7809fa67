"""Segmenters and detectors as folders: which task a saved model has, and its loading.

In: a folder, or a name on the hub. Out: a model with our backbone. This module reads no image.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    PreTrainedConfig,
    RTDetrImageProcessor,
    RTDetrV2ForObjectDetection,
    SegformerImageProcessor,
)

from swinv2.auto import register
from swinv2.dense.detectors import MODEL_TYPE, SwinRCNN
from swinv2.dense.upernet import UperNetForSemanticSegmentation
from swinv2.errors import UsageError, first_sentence
from swinv2.exported import read_manifest
from swinv2.lengths import Pair

SEGMENTATION, INSTANCES, DETECTION = "segmentation", "instances", "detection"
TASKS = (SEGMENTATION, INSTANCES, DETECTION)
"""Classes of pixels; objects with masks; objects with boxes."""


MODEL_CLASSES: dict[str, Any] = {
    "upernet": UperNetForSemanticSegmentation,
    "mask2former": Mask2FormerForUniversalSegmentation,
    "rt_detr_v2": RTDetrV2ForObjectDetection,
    MODEL_TYPE: SwinRCNN,
}
"""The classes of saved models, by the model type of their configurations."""


def read_dense_config(name: str) -> dict[str, Any] | None:
    """The configuration of a saved segmenter or detector with a Swin V2 backbone; None if it is none, or not there.

    Args:
        name: A folder, or a name on the hub.
    """
    folder = Path(name).expanduser()
    if folder.is_file():
        return None
    try:
        fields, _ = PreTrainedConfig.get_config_dict(str(folder) if folder.is_dir() else name)
    except (OSError, ValueError):
        # Whoever asks goes on with the name, and says what is wrong with it.
        return None
    backbone = fields.get("backbone_config")
    is_ours = isinstance(backbone, dict) and backbone.get("model_type") == "swinv2"
    return fields if is_ours and fields.get("model_type") in MODEL_CLASSES else None


def task_of(config: dict[str, Any]) -> str:
    """The task of a saved model: one of `TASKS`.

    Args:
        config: The fields of its configuration.
    """
    usual = {
        "upernet": SEGMENTATION,
        "mask2former": SEGMENTATION,
        "rt_detr": DETECTION,
        "faster_rcnn": DETECTION,
        "mask_rcnn": INSTANCES,
    }
    # Mask2Former can learn two tasks, and a training writes down which one.
    return config.get("dense_task") or usual[head_of(config)]


def head_of(config: dict[str, Any]) -> str:
    """The head of a saved model: one of `heads.HEADS`.

    Args:
        config: The fields of its configuration.
    """
    if config["model_type"] == MODEL_TYPE:
        return "mask_rcnn" if config.get("with_masks") else "faster_rcnn"
    return "rt_detr" if config["model_type"] == "rt_detr_v2" else config["model_type"]


def image_scale_of(config: Mapping[str, Any]) -> float:
    """The factor by which a saved segmenter enlarges images before it answers, from its configuration."""
    return float(config.get("image_scale", 1.0))


def load_dense(
    name: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> UperNetForSemanticSegmentation | Mask2FormerForUniversalSegmentation | RTDetrV2ForObjectDetection | SwinRCNN:
    """Loads a segmenter or a detector that was saved with our backbone, in evaluation mode.

    Args:
        name: A folder, or a name on the hub.
        device: Device of the weights.
        dtype: Type of the weights.

    Raises:
        UsageError: It is no such model, or weights are missing or damaged.
    """
    config, path = read_dense_config(name), Path(name).expanduser()
    if config is not None and read_manifest(name) is not None:
        raise UsageError(
            f"{name!r} is an exported model, whose graph takes images of one size (preprocessing.json); run it in its "
            "runtime, or use the model that it came from."
        )
    if config is None and read_dense_config(str(path / "final")) is not None:
        raise UsageError(f"{name!r} is the folder of a training; its model is {str(path / 'final')!r}.")
    if config is None and not path.exists():
        raise UsageError(f"there is no folder {name!r}, and no segmenter or detector of this name on the hub.")
    if config is None:
        raise UsageError(
            f"{name!r} is no segmenter or detector with a Swin V2 backbone; expected a folder that "
            "`swinv2 finetune --task ...` or `save_pretrained` wrote, with config.json and model.safetensors."
        )
    register()
    folder = Path(name).expanduser()
    try:
        model, report = MODEL_CLASSES[config["model_type"]].from_pretrained(
            str(folder) if folder.is_dir() else name, dtype=dtype, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, TypeError, SafetensorError, pickle.UnpicklingError) as error:
        raise UsageError(f"the weights of {name!r} cannot be loaded: {first_sentence(error)}.") from error
    wrong = sorted({*report["missing_keys"], *(str(entry[0]) for entry in report["mismatched_keys"])})
    if wrong:
        raise UsageError(
            f"{name!r} has no fitting weights for {', '.join(wrong[:3])}{' ...' * (len(wrong) > 3)}; its config.json "
            "and its weights do not match."
        )
    model.supports_gradient_checkpointing = True
    return model.eval().to(device)


def make_dense_processor(model: Any, size: Pair, mean: list[float], std: list[float]) -> Any:
    """Builds transformers' image processor for a model: segmenters take images of any size, RT-DETR and Mask2Former for
    instances of one size. torchvision's detectors have none: they resize and normalise images themselves.

    Args:
        model: The segmenter or detector.
        size: Height and width in pixels of images of one size.
        mean, std: Mean and standard deviation of each channel, for values from 0 to 1.
    """
    numbers: Any = {"image_mean": list(mean), "image_std": list(std), "do_normalize": True}
    if isinstance(model, UperNetForSemanticSegmentation):
        return SegformerImageProcessor(do_resize=False, do_reduce_labels=False, **numbers)
    if isinstance(model, Mask2FormerForUniversalSegmentation):
        sized: Any = {"size": {"height": size[0], "width": size[1]}, "size_divisor": 1}
        sized = sized if getattr(model.config, "dense_task", "") == INSTANCES else {"do_resize": False}
        return Mask2FormerImageProcessor(ignore_index=255, **sized, **numbers)
    if isinstance(model, RTDetrV2ForObjectDetection):
        return RTDetrImageProcessor(size={"height": size[0], "width": size[1]}, **numbers)
    return None
