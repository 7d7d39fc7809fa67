"""Writes a model's folder in the format of a library, atomically.

In: a model, its image processor and the format. Out: a folder that the library can open. This module knows no source of
weights.

============  ==========================================================================================
format        files of the folder
============  ==========================================================================================
swinv2        config.json, model.safetensors, preprocessor_config.json; of a video model
              video_preprocessor_config.json instead
transformers  the first three, for models that transformers' own classes can compute
timm          config.json with architecture and arguments, model.safetensors: "local-dir:" of create_model
torchvision   model.pth, a state dict; README.md with the call that builds its network
microsoft     model.pth, {"model": state dict}; README.md with the settings
mmpretrain    model.pth, {"meta": {}, "state_dict": state dict}; README.md with the settings
the last 3    also preprocessor_config.json, so that converting the folder back keeps the image processor
============  ==========================================================================================
"""

import itertools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from swinv2.config import Swinv2Config
from swinv2.convert.dialects.limits import with_equivalent_square
from swinv2.convert.dialects.microsoft import MICROSOFT, SIMMIM
from swinv2.convert.dialects.mmpretrain import MMPRETRAIN
from swinv2.convert.dialects.rules import MODEL, Dialect, fill, write
from swinv2.convert.dialects.timm import TIMM
from swinv2.convert.dialects.torchvision import TORCHVISION
from swinv2.convert.dialects.transformers import TRANSFORMERS
from swinv2.convert.files import CONFIG, PROCESSOR
from swinv2.convert.processors import crop_of, interpolation_name
from swinv2.convert.tables import make_table
from swinv2.disk import whole_folder
from swinv2.errors import UsageError
from swinv2.heads import Swinv2ForImageClassification, Swinv2ForMaskedImageModeling
from swinv2.lengths import as_pair, plain_pair
from swinv2.loading import label_names
from swinv2.model import Swinv2Model, Swinv2PreTrainedModel
from swinv2.video.models import Swinv2VideoPreTrainedModel
from swinv2.video.processing import VIDEO_PROCESSOR

SWINV2 = "swinv2"
"""The format of this package."""
_DIALECTS = {dialect.name: dialect for dialect in (TRANSFORMERS, TIMM, TORCHVISION, MICROSOFT, MMPRETRAIN)}
FORMATS = (SWINV2, *_DIALECTS)
"""All formats that can be written."""


def check_output(output: Path) -> None:
    """Checks that the folder of a conversion can be made, before any work is done for it.

    Raises:
        UsageError: The path exists already, or its parent does not exist or cannot be written to.
    """
    if os.path.lexists(output):
        raise UsageError(f"{str(output)!r} exists already, and is not replaced; name another folder, or remove it.")
    folder = output.absolute().parent
    if not folder.is_dir():
        raise UsageError(f"{str(output)!r} cannot be made: there is no folder {str(folder)!r}.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{str(output)!r} cannot be made: the folder {str(folder)!r} may not be written to.")


def check_format(model: Swinv2PreTrainedModel, format: str) -> None:
    """Checks that the network of a format's library computes the same as a model of ours.

    Raises:
        UsageError: There is no such format, or its library would compute something else; the message says why.
    """
    if format not in FORMATS:
        raise UsageError(f"there is no format {format!r}; expected one of {', '.join(FORMATS)}.")
    if format == SWINV2:
        return
    dialect = _dialect_of(model, format)
    reasons = [sentence for limit in dialect.limits for sentence in limit(model.config)]
    if isinstance(model, Swinv2ForMaskedImageModeling) and dialect not in (SIMMIM, TRANSFORMERS):
        reasons.insert(0, "it has no mask token and no decoder for masked-image modelling")
    if reasons:
        raise UsageError(f"{dialect.title} cannot compute this model: {'; '.join(reasons)}. Nothing was written.")


def state_dict(model: Swinv2PreTrainedModel, format: str) -> dict[str, Tensor]:
    """A model's tensors under the names of a format, with the tables that its library also stores."""
    tensors = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    if format in (SWINV2, TRANSFORMERS.name):
        return tensors
    dialect = _dialect_of(model, format)
    prefix = MODEL if isinstance(model, Swinv2Model) else ""
    written = write(dialect, {prefix + name: tensor for name, tensor in tensors.items()}, len(model.config.depths))
    templates: dict[str, str] = {}
    for kind, template in dialect.buffers if dialect.writes_buffers else ():
        templates.setdefault(kind, template)
    for spec in model.config.stages():
        for block, kind in itertools.product(range(spec.depth), templates):
            table = make_table(kind, spec, block)
            if table is not None:
                name = fill(templates[kind], {"stage": str(spec.index), "block": str(block)}, 0)
                written[name] = table.flatten() if kind == "pairs" and dialect.flat_pairs else table
    return {name: tensor.contiguous() for name, tensor in written.items()}


def _dialect_of(model: Swinv2PreTrainedModel, format: str) -> Dialect:
    """The dialect of a format in which a model is written."""
    dialect = _DIALECTS[format]
    return SIMMIM if dialect is MICROSOFT and isinstance(model, Swinv2ForMaskedImageModeling) else dialect


def write_folder(model: Swinv2PreTrainedModel, processor: Mapping[str, Any], output: Path, format: str) -> list[str]:
    """Writes a model and its image or video processor in a format that `check_format` accepts.

    Returns:
        The names of the files.

    Raises:
        UsageError: The folder cannot be written; no folder is left then.
    """
    with whole_folder(output) as folder:
        if format in (SWINV2, TRANSFORMERS.name):
            model.save_pretrained(folder)
            if format == TRANSFORMERS.name:
                with_equivalent_square(model.config).save_pretrained(folder)
            is_for_videos = isinstance(model, Swinv2VideoPreTrainedModel)
            _write_json_file(folder / (VIDEO_PROCESSOR if is_for_videos else PROCESSOR), processor)
        elif format == TIMM.name:
            save_file(state_dict(model, format), folder / "model.safetensors", {"format": "pt"})
            _write_json_file(folder / CONFIG, _timm_config(model.config, _count_classes(model), processor))
        else:
            tensors = state_dict(model, format)
            wrapped = {MICROSOFT.name: {"model": tensors}, MMPRETRAIN.name: {"meta": {}, "state_dict": tensors}}
            torch.save(wrapped.get(format, tensors), folder / "model.pth")
            _write_json_file(folder / PROCESSOR, processor)
            (folder / "README.md").write_text(_readme_of_model(model, format), encoding="utf-8")
        return sorted(path.name for path in folder.iterdir())


def _write_json_file(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file of a converted model, such as config.json."""
    path.write_text(json.dumps(dict(content), indent=2) + "\n", encoding="utf-8")


def _count_classes(model: Swinv2PreTrainedModel) -> int:
    """Number of classes of the model to write; 0 without a classifier, since the configuration cannot say that."""
    return model.config.num_labels or 0 if isinstance(model, Swinv2ForImageClassification) else 0


def _timm_config(config: Swinv2Config, num_classes: int, processor: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json that timm needs to open the written folder."""
    height, width = as_pair("image_size", config.image_size)
    names = label_names(config)
    crop = crop_of(processor)
    windows = with_equivalent_square(config).stage_windows
    return {
        # `model_args` replaces every size of this architecture.
        "architecture": "swinv2_tiny_window8_256",
        "num_classes": num_classes,
        **({"label_names": names} if num_classes and len(names) == num_classes else {}),
        "model_args": {
            "img_size": [height, width],
            "patch_size": config.patch_size,
            "in_chans": config.num_channels,
            "embed_dim": config.embed_dim,
            "depths": list(config.depths),
            "num_heads": list(config.num_heads),
            # Releases before 1.0.31 read the first two numbers of a list as the height and width of one window, and
            # raise an error for a list of pairs. So no release misreads either notation.
            "window_size": plain_pair(windows[0]) if len(set(windows)) == 1 else [list(window) for window in windows],
            # In timm, a pair with one zero has another meaning.
            "pretrained_window_sizes": [
                plain_pair(spec.learned_window) if any(spec.pretrained_window) else 0 for spec in config.stages()
            ],
            "mlp_ratio": config.mlp_ratio,
            "qkv_bias": config.qkv_bias,
        },
        "pretrained_cfg": {
            "num_classes": num_classes,
            "input_size": [config.num_channels, height, width],
            "fixed_input_size": True,
            "interpolation": interpolation_name(processor),
            "crop_pct": crop.share,
            "crop_mode": "squash" if crop.squashes else "center",
            "mean": list(processor.get("image_mean", [0.485, 0.456, 0.406])),
            "std": list(processor.get("image_std", [0.229, 0.224, 0.225])),
            "first_conv": "patch_embed.proj",
            "classifier": "head.fc",
        },
    }


def _readme_of_model(model: Swinv2PreTrainedModel, format: str) -> str:
    """The README of a written folder: settings, and code that loads the model."""
    config = model.config
    settings: dict[str, Any] = {
        "image size": config.image_size,
        "patch size": config.patch_size,
        "channels": config.embed_dim,
        "depths": list(config.depths),
        "heads": list(config.num_heads),
        "mlp ratio": config.mlp_ratio,
        "classes": _count_classes(model),
    }
    if format == TORCHVISION.name:
        settings["window size"] = list(config.stage_windows[0])
        code = _torchvision_call(config, settings["classes"])
    else:
        settings["window size"] = with_equivalent_square(config).window_size
        settings["pre-training windows"] = [spec.pretrained_window[0] for spec in config.stages()]
        inner = "model" if format == MICROSOFT.name else "state_dict"
        code = f'torch.load("model.pth", weights_only=True)["{inner}"]\n'
    rows = "".join(f"- {name}: {value}\n" for name, value in settings.items())
    return (
        f"# Swin Transformer V2 for {_dialect_of(model, format).title}\n\n{rows}\n```python\nimport torch\n{code}```\n"
    )


def _torchvision_call(config: Swinv2Config, num_classes: int) -> str:
    """Code for the README that builds torchvision's network; its classifier is removed if ours has none."""
    return f"""from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

network = SwinTransformer(
    patch_size={list(as_pair("patch_size", config.patch_size))},
    embed_dim={config.embed_dim},
    depths={list(config.depths)},
    num_heads={list(config.num_heads)},
    window_size={list(config.stage_windows[0])},
    mlp_ratio={config.mlp_ratio},
    num_classes={num_classes or 1},
    block=SwinTransformerBlockV2,
    downsample_layer=PatchMergingV2,
)
{"" if num_classes else "network.head = torch.nn.Identity()"}
network.load_state_dict(torch.load("model.pth", weights_only=True))
"""
