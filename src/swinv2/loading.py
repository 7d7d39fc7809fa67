"""Loads models from folders and from the hub; every failure is a `UsageError`.

In: the name that a user types. Out: a configuration, a model on its device, an image or video processor. This module
knows no image.
"""

import difflib
import hashlib
import pickle
import re
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from transformers import AutoImageProcessor, PreTrainedConfig

from swinv2.config import Swinv2Config
from swinv2.errors import UsageError, first_sentence
from swinv2.exported import ExportedNetwork, device_of_export, read_manifest
from swinv2.model import Swinv2PreTrainedModel
from swinv2.video.config import Swinv2VideoConfig
from swinv2.video.models import Swinv2VideoPreTrainedModel
from swinv2.video.processing import VIDEO_PROCESSOR, Swinv2VideoProcessor
from swinv2.zoo import CHECKPOINTS, PRESETS

Model = TypeVar("Model", bound=Swinv2PreTrainedModel)

EXAMPLE = "microsoft/swinv2-tiny-patch4-window8-256"
_CONFIGS: dict[Any, type[Swinv2Config]] = {each.model_type: each for each in (Swinv2Config, Swinv2VideoConfig)}
_EXPECTED = f"a folder with config.json and model.safetensors, or a name on the Hugging Face hub such as {EXAMPLE}"


def choose_device(name: str) -> torch.device:
    """Finds a device by its name.

    Args:
        name: "auto" for the accelerator, or for the CPU if the machine has none; or torch's name, such as "cuda:1".

    Raises:
        UsageError: The machine has no such device.
    """
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"device {name!r} cannot be used: {first_sentence(error)}. Use --device auto or --device cpu."
        ) from error
    if device.type == "meta":
        raise UsageError("device 'meta' stores no numbers. Use --device auto or --device cpu.")
    return device


def choose_device_of(model: str, name: str) -> torch.device:
    """The device for a model: see `choose_device`; of an exported one `exported.device_of_export`."""
    return choose_device(name) if read_manifest(model) is None else device_of_export(model, name)


def read_config(name: str, videos: bool | None = False) -> Swinv2Config:
    """Reads the configuration of a model.

    Args:
        name: A folder, or a name on the hub.
        videos: Whether the model must be for videos; None if it may be for images or videos.

    Returns:
        The configuration; of a model for videos, a `Swinv2VideoConfig`.

    Raises:
        UsageError: The model does not exist, cannot be reached, is not a Swin Transformer V2, or not of the kind that
            is wanted.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UsageError(f"the folder {name!r} is not a model: it has no config.json. Expected {_EXPECTED}.")
    elif folder.exists():
        raise UsageError(f"{name!r} is a file; expected {_EXPECTED}.")
    elif name in PRESETS:
        raise UsageError(
            f"{name!r} is a size, not a model with weights; expected {_EXPECTED}. `swinv2 info {name}` describes it."
        )
    elif not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        raise UsageError(f"there is no folder {name!r}; expected {_EXPECTED}.")
    try:
        fields, _ = PreTrainedConfig.get_config_dict(_expand_home(name))
    except (OSError, ValueError) as error:
        if folder.is_dir():
            raise UsageError(f"the config.json in {name!r} cannot be read: {first_sentence(error)}.") from error
        close = difflib.get_close_matches(name, CHECKPOINTS, 1, cutoff=0.8)
        hint = f" Did you mean {close[0]}?" if close and close[0] != name else ""
        raise UsageError(
            f"{name!r} is not a folder, and cannot be loaded from the Hugging Face hub: {first_sentence(error)}."
            f"{hint} Check the name and the network, or give a folder. Without --model, classify uses the model in "
            "this package, which needs no network."
        ) from error
    model_type, inside = fields.get("model_type"), fields.get("backbone_config")
    if isinstance(inside, dict) and inside.get("model_type") == "swinv2":
        raise UsageError(
            f"the model {name!r} is a segmenter or detector ({model_type}); use it with `swinv2 segment`, `detect` or "
            "`evaluate`."
        )
    config_class = _CONFIGS.get(model_type)
    if config_class is None:
        raise UsageError(
            f"the model {name!r} has the model type {model_type!r}; this package supports 'swinv2' and 'swinv2_video' "
            f"only. Expected {_EXPECTED}."
        )
    is_for_videos = config_class is Swinv2VideoConfig
    if is_for_videos and videos is False:
        raise UsageError(f"the model {name!r} is for videos, and this needs a model for images.")
    if videos and not is_for_videos:
        raise UsageError(
            f"the model {name!r} is for images, and this needs a model for videos. Make one of it: swinv2 convert "
            f"{name} video-model --inflate."
        )
    try:
        return config_class.from_dict(fields).checked()
    except (ValueError, TypeError) as error:
        raise UsageError(f"the model in the config.json of {name!r} is impossible: {error}") from error


def is_video_model(name: str) -> bool:
    """Whether a model is for videos; see `read_config` for errors."""
    return isinstance(read_config(name, None), Swinv2VideoConfig)


def load_model(
    model_class: type[Model],
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    *,
    may_be_exported: bool = False,
    **fields: Any,
) -> Model:
    """Loads a model for inference.

    Args:
        model_class: Class of the model.
        name: A folder, or a name on the hub.
        device: Device of the weights.
        dtype: Type of the weights.
        may_be_exported: Whether an exported model will do. It is an `ExportedNetwork`, which is called as its source.
        fields: Fields of the configuration to change.

    Raises:
        UsageError: The weights are missing, damaged or incomplete; or the model is exported and must not be, or is of
            another class, or for images instead of videos or the other way round.
    """
    config = read_config(name, issubclass(model_class, Swinv2VideoPreTrainedModel))
    if read_manifest(name) is not None:
        if not may_be_exported:
            raise UsageError(f"{name!r} is an exported model; this needs the model that it came from.")
        return _load_exported(model_class, name, config, device, dtype, fields)
    try:
        loaded: Any = model_class.from_pretrained(_expand_home(name), dtype=dtype, output_loading_info=True, **fields)
    except (OSError, ValueError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        raise UsageError(f"the weights of {name!r} cannot be loaded: {first_sentence(error)}.") from error
    model, report = loaded
    missing = sorted(report["missing_keys"])
    if missing:
        raise UsageError(
            f"the model {name!r} has no trained weights for {', '.join(missing[:3])}{' ...' * (len(missing) > 3)}: its "
            f"outputs would be random. Expected a model that {model_class.__name__} saved."
        )
    return model.eval().to(device)


def _load_exported(
    model_class: Any, name: str, config: Swinv2Config, device: torch.device, dtype: torch.dtype, fields: dict[str, Any]
) -> Any:
    """Loads an exported model, see `load_model`."""
    entries = (read_manifest(name) or {})["components"].values()
    found, wanted = next(iter(entries))["metadata"]["architecture"], model_class.__name__
    if found != wanted:
        raise UsageError(
            f"{name!r} is an export of {found}, and this needs {wanted}; export the model again, see `swinv2 export "
            "--help` (--answers)."
        )
    missing = [each for each in fields.get("out_features", []) if each not in (config.out_features or [])]
    if missing:
        raise UsageError(
            f"{name!r} is an export with the maps {', '.join(config.out_features or [])}, not {missing[0]}."
        )
    return ExportedNetwork(name, config, device, dtype)


def load_processor(name: str, channels: int = 3) -> Any:
    """Loads the image processor that is stored with a model of so many channels.

    Raises:
        UsageError: The model has none, or it is made for another number of channels.
    """
    try:
        processor = AutoImageProcessor.from_pretrained(_expand_home(name), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"the model {name!r} has no image processor (preprocessor_config.json), so its image size and "
            "normalisation are unknown. Save the processor of its training there: processor.save_pretrained(folder)."
        ) from error
    means: float | list[float] | None = getattr(processor, "image_mean", None)
    if (
        getattr(processor, "do_normalize", False)
        and isinstance(means, (list, tuple))
        and len(means) not in (1, channels)
    ):
        raise UsageError(
            f"the image processor of {name!r} (preprocessor_config.json) has {len(means)} means, but the model takes "
            f"{channels} channel{'s' * (channels > 1)}; give it one mean and one deviation for each channel."
        )
    if channels != 3:
        processor.do_convert_rgb = False
    return processor


def load_video_processor(name: str, channels: int = 3) -> Swinv2VideoProcessor:
    """Loads the video processor that is stored with a model of so many channels.

    Raises:
        UsageError: The model has none, or does not take three channels, as videos have.
    """
    if channels != 3:
        raise UsageError(
            f"the model takes {channels} channel{'s' * (channels > 1)}, but a video file has 3; in Python, give the "
            "model tensors."
        )
    folder = Path(name).expanduser()
    # Without this file, transformers takes that of an image processor, and the defaults of VideoMAE.
    is_absent = folder.is_dir() and not any(
        (folder / file).is_file() for file in (VIDEO_PROCESSOR, "processor_config.json")
    )
    try:
        if is_absent:
            raise OSError(f"there is no file {VIDEO_PROCESSOR}")
        processor: Any = Swinv2VideoProcessor.from_pretrained(_expand_home(name))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"the model {name!r} has no video processor ({VIDEO_PROCESSOR}), so its image size and normalisation are "
            "unknown. Save the processor of its training there: processor.save_pretrained(folder)."
        ) from error
    return processor


def _expand_home(name: str) -> str:
    """The path of a folder, which may begin with "~"; any other name unchanged."""
    folder = Path(name).expanduser()
    return str(folder) if folder.is_dir() else name


def has_several_labels(config: Swinv2Config) -> bool:
    """Whether a classifier gives an image any number of labels, each with a probability of its own; otherwise exactly
    one. The same rule as in transformers' image-classification pipeline."""
    return config.problem_type == "multi_label_classification" or config.num_labels == 1


def label_names(config: PreTrainedConfig) -> list[str]:
    """Names of a model's classes, in the order of its scores."""
    names: dict[Any, str] = dict(config.id2label or {})
    return [names[index] for index in sorted(names)]


def hash_weights(model: torch.nn.Module) -> str:
    """A hash of all tensors of a model: their names, types, shapes and values."""
    found = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        found.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy())
    return found.hexdigest()
