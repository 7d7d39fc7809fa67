"""Models from folders and from the hub, with every failure a sentence.

In: a name as a user types it. Out: a configuration, a model on its device, an image processor. This module knows where
models come from; it knows no image.
"""

import difflib
import pickle
import re
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from transformers import AutoImageProcessor, PreTrainedConfig

from swinv2.config import Swinv2Config
from swinv2.errors import UsageError, first_sentence
from swinv2.model import Swinv2PreTrainedModel
from swinv2.zoo import CHECKPOINTS, PRESETS

Model = TypeVar("Model", bound=Swinv2PreTrainedModel)

EXAMPLE = "microsoft/swinv2-tiny-patch4-window8-256"
_EXPECTED = f"a folder with config.json and model.safetensors, or a name on the Hugging Face hub such as {EXAMPLE}"


def choose_device(name: str) -> torch.device:
    """Finds the device that is meant.

    Args:
        name: "auto" for the accelerator if there is one, otherwise the CPU; or a name torch knows, such as "cuda:1".

    Raises:
        UsageError: There is no such device here.
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
        raise UsageError("device 'meta' holds no numbers. Use --device auto or --device cpu.")
    return device


def read_config(name: str) -> Swinv2Config:
    """Reads the configuration of a model.

    Args:
        name: A folder, or a name on the hub.

    Raises:
        UsageError: It is neither, cannot be reached, or is no Swin Transformer V2.
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
        fields, _ = PreTrainedConfig.get_config_dict(str(folder) if folder.is_dir() else name)
    except (OSError, ValueError) as error:
        raise _unreachable(name, folder.is_dir(), error) from error
    model_type = fields.get("model_type")
    if model_type != "swinv2":
        raise UsageError(
            f"the model {name!r} is of the type {model_type!r}; this package runs 'swinv2' only. Expected {_EXPECTED}."
        )
    try:
        return Swinv2Config.from_dict(fields).checked()
    except (ValueError, TypeError) as error:
        raise UsageError(f"the config.json of {name!r} describes no possible model: {error}") from error


def load_model(model_class: type[Model], name: str, device: torch.device, dtype: torch.dtype, **fields: Any) -> Model:
    """Loads a model for inference.

    Args:
        model_class: What to build.
        name: A folder, or a name on the hub.
        device: Where to put it.
        dtype: Type of its weights.
        fields: Fields of the configuration to change.

    Raises:
        UsageError: The weights are missing, damaged, or not all that the model has.
    """
    config = read_config(name)
    if config.num_channels != 3:
        raise UsageError(
            f"the model {name!r} takes images of {config.num_channels} channels; only models of 3 (red, green, blue) "
            "can be used here. Load it in Python instead, with from_pretrained."
        )
    folder = Path(name).expanduser()
    source = str(folder) if folder.is_dir() else name
    try:
        loaded: Any = model_class.from_pretrained(source, dtype=dtype, output_loading_info=True, **fields)
    except (OSError, ValueError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        raise UsageError(f"the weights of {name!r} cannot be loaded: {first_sentence(error)}.") from error
    model, report = loaded
    missing = sorted(report["missing_keys"])
    if missing:
        raise UsageError(
            f"the model {name!r} has no trained weights for {', '.join(missing[:3])}{' ...' * (len(missing) > 3)}: its "
            f"answers would be random. Expected a model that {model_class.__name__} saved."
        )
    return model.eval().to(device)


def load_processor(name: str) -> Any:
    """Loads the image processor that is stored with a model.

    Raises:
        UsageError: There is none.
    """
    folder = Path(name).expanduser()
    try:
        return AutoImageProcessor.from_pretrained(str(folder) if folder.is_dir() else name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"the model {name!r} has no image processor (preprocessor_config.json), so the size and normalisation it "
            "expects are unknown. Save the one it was trained with beside it: processor.save_pretrained(folder)."
        ) from error


def _unreachable(name: str, is_folder: bool, error: Exception) -> UsageError:
    if is_folder:
        return UsageError(f"the config.json in {name!r} cannot be read: {first_sentence(error)}.")
    close = difflib.get_close_matches(name, CHECKPOINTS, 1, cutoff=0.8)
    hint = f" Did you mean {close[0]}?" if close and close[0] != name else ""
    return UsageError(
        f"the model {name!r} is no folder here, and the Hugging Face hub did not give it: {first_sentence(error)}."
        f"{hint} Check the name and the network, or give a folder; without --model, classify uses the model that ships "
        "with this package, which needs no network."
    )


def label_names(config: Swinv2Config) -> list[str]:
    """Names of a classifier's classes, in the order of its scores."""
    names: dict[Any, str] = dict(config.id2label or {})
    return [names[index] for index in sorted(names)]
