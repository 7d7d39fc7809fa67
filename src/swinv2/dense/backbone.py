"""The backbone of a dense model, with the weights of a checkpoint of any library.

In: a checkpoint. Out: a `Swinv2Backbone` in which every tensor is the checkpoint's. This module knows no head.
"""

import copy
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from swinv2.convert import load
from swinv2.dense.saved import load_dense, read_dense_config
from swinv2.errors import UsageError
from swinv2.heads import Swinv2Backbone
from swinv2.lengths import Pair, Windows, in_words
from swinv2.loading import load_model
from swinv2.model import Swinv2PreTrainedModel

logger = logging.getLogger(__name__)


def load_backbone(
    checkpoint: str | os.PathLike[str],
    image_size: int | Pair | None = None,
    window_size: Windows | None = None,
    *,
    out_features: Sequence[str] | None = None,
    norm_feature_maps: bool = True,
    drop_path_rate: float | None = None,
    **trained: Any,
) -> Swinv2Backbone:
    """Loads the backbone of a checkpoint with all of its tensors. Only the norms of the maps are new, unless the
    checkpoint is a backbone that has them.

    Args:
        checkpoint: A file, a folder or a name on the hub, in the names of any library, see `swinv2.load`; or a saved
            segmenter or detector.
        image_size, window_size: The size of the images in pixels and of the windows in tokens; None keeps those of the
            checkpoint. Others are set by `set_image_size`.
        out_features: The maps to return: "stage1", ...; None for those of all stages.
        norm_feature_maps: Whether each map has a layer norm; see `Swinv2Config`.
        drop_path_rate: Drop path probability of the last block; None for that of the checkpoint.
        trained: Facts about the training that the checkpoint does not show, such as `trained_window_size`; see
            `swinv2.load`.

    Returns:
        The backbone, in evaluation mode, on the CPU, in fp32.

    Raises:
        UsageError: The checkpoint cannot be read, or it lacks a tensor of the network.
    """
    loaded: Any = _load_model(os.fspath(checkpoint), trained)
    config = copy.deepcopy(loaded.config)
    wanted = list(out_features or config.stage_names[1:])
    unknown = [name for name in wanted if name not in config.stage_names]
    if unknown:
        raise UsageError(
            f"the network of {os.fspath(checkpoint)} has no map {unknown[0]!r}; it has {', '.join(config.stage_names)}."
        )
    config.norm_feature_maps = norm_feature_maps
    config.architectures, config.dtype = None, torch.float32
    # Not the classes of the checkpoint.
    config.id2label, config.label2id = {}, {}
    config.set_output_features_output_indices(wanted, None)
    if drop_path_rate is not None:
        config.drop_path_rate = drop_path_rate
    backbone = Swinv2Backbone(config).eval()
    source = getattr(loaded, "swinv2", loaded)
    # Only masked-image modelling uses a mask token.
    embeddings = {name: tensor for name, tensor in source.embeddings.state_dict().items() if name != "mask_token"}
    backbone.embeddings.load_state_dict(embeddings)
    encoder = source.encoder.state_dict()
    backbone.encoder.load_state_dict(encoder)
    logger.info(f"the backbone has all of its {len(embeddings) + len(encoder)} tensors from {os.fspath(checkpoint)}")
    _load_norms(backbone, getattr(loaded, "hidden_states_norms", nn.ModuleDict()))
    if image_size is not None or window_size is not None:
        size: Any = config.image_size if image_size is None else image_size
        set_image_size(backbone, size, window_size)
    return backbone


def backbone_of(model: nn.Module) -> Swinv2Backbone:
    """The backbone in a segmenter or detector, or the backbone itself."""
    (backbone,) = (module for module in model.modules() if isinstance(module, Swinv2Backbone))
    return backbone


def set_image_size(
    model: nn.Module, image_size: int | Pair, window_size: Windows | None = None, *, stretch: bool = False
) -> None:
    """Adapts a backbone, or the one in a segmenter or detector, to another image size and window, and the configuration
    that is saved. The position bias is extrapolated.

    Args:
        model: A `Swinv2Backbone`, or a model that contains one.
        image_size: In pixels, one length or (height, width).
        window_size: In tokens. One window for all stages, also the present one, is smaller in a stage whose map it does
            not fit (see `Swinv2Config.fitted_windows`). Windows for each stage are taken as they are.
        stretch: Stretch the learned position bias over the new window instead of extrapolating it.

    Raises:
        UsageError: The size or the window is impossible; the model is unchanged.
    """
    backbone = backbone_of(model)
    before = backbone.config
    windows: Any = before.window_size if window_size is None else window_size
    try:
        is_one = isinstance(windows, int) or (len(windows) == 2 and all(isinstance(side, int) for side in windows))
        if is_one and (image_size, windows) != (before.image_size, before.window_size):
            windows = before.fitted_windows(image_size, windows)
        backbone.set_image_size(image_size, windows, stretch)
    except ValueError as error:
        raise UsageError(f"these sizes are impossible: {error}") from error
    head: Any = getattr(model, "config", None)
    if hasattr(head, "backbone_config"):
        head.backbone_config = copy.deepcopy(backbone.config)
    changed = [
        f"{in_words(new.window)} from {in_words(new.learned_window)} in {new.name}"
        for new in backbone.config.stages()
        if new.window != new.learned_window
    ]
    if changed:
        how = "stretched" if stretch else "extrapolated"
        logger.info(f"the position bias is {how} to windows of {', '.join(changed)}")


def _load_norms(backbone: Swinv2Backbone, stored: nn.ModuleDict) -> None:
    """Loads the norms of the maps that the checkpoint has."""
    own = backbone.hidden_states_norms if backbone.config.norm_feature_maps else nn.ModuleDict()
    for name in own.keys() & stored.keys():
        own[name].load_state_dict(stored[name].state_dict())
    new, left_out = [name for name in own if name not in stored], [name for name in stored if name not in own]
    if new:
        logger.info(f"the norms of the maps {', '.join(new)} are new")
    if left_out:
        logger.info(f"the norms of the maps {', '.join(left_out)} are left out")


def _load_model(checkpoint: str, trained: dict[str, Any]) -> Swinv2PreTrainedModel:
    """Loads the network of a checkpoint, with or without a head; also a saved backbone, which has no last norm, and the
    backbone of a saved segmenter or detector."""
    if read_dense_config(checkpoint) is not None:
        return backbone_of(load_dense(checkpoint))
    stored = Path(checkpoint).expanduser() / "config.json"
    try:
        architectures = json.loads(stored.read_text()).get("architectures") or []
    except (OSError, ValueError, AttributeError):
        # No folder of transformers; `load` says what is wrong, if something is.
        architectures = []
    if Swinv2Backbone.__name__ in architectures:
        return load_model(Swinv2Backbone, checkpoint, torch.device("cpu"), torch.float32)
    return load(checkpoint, **trained)
