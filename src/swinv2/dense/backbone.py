"""The backbone of a dense model, with the weights of a checkpoint of any library.

In: a checkpoint. Out: a `Swinv2Backbone` in which every tensor is the checkpoint's. This module knows no head.
"""

import copy
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from swinv2.convert import load
from swinv2.errors import UsageError
from swinv2.heads import Swinv2Backbone
from swinv2.lengths import Pair, Windows
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
        checkpoint: A file, a folder or a name on the hub, in the names of any library; see `swinv2.load`.
        image_size, window_size: The size of the images in pixels and of the windows in tokens; None keeps those of the
            checkpoint. Other windows extrapolate the position bias. One window for all stages is smaller in a stage
            whose map it does not fit; see `Swinv2Config.fitted_windows`. Windows for each stage are taken as they are.
        out_features: The maps to return: "stage1", ...; None for those of all stages.
        norm_feature_maps: Whether each map has a layer norm; see `Swinv2Config`.
        drop_path_rate: Drop path probability of the last block; None for that of the checkpoint.
        trained: Facts about the training that the checkpoint does not show; see `swinv2.load`.

    Returns:
        The backbone, in evaluation mode, on the CPU, in fp32.

    Raises:
        UsageError: The checkpoint cannot be read, or it lacks a tensor of the network.
    """
    loaded: Any = _load_model(os.fspath(checkpoint), image_size, window_size, trained)
    source = getattr(loaded, "swinv2", loaded)
    config = copy.deepcopy(loaded.config)
    config.norm_feature_maps = norm_feature_maps
    config.architectures, config.dtype = None, torch.float32
    config.set_output_features_output_indices(list(out_features or config.stage_names[1:]), None)
    if drop_path_rate is not None:
        config.drop_path_rate = drop_path_rate
    backbone = Swinv2Backbone(config)
    # Only masked-image modelling uses a mask token.
    embeddings = {name: tensor for name, tensor in source.embeddings.state_dict().items() if name != "mask_token"}
    backbone.embeddings.load_state_dict(embeddings)
    encoder = source.encoder.state_dict()
    backbone.encoder.load_state_dict(encoder)
    logger.info(f"the backbone has all of its {len(embeddings) + len(encoder)} tensors from {os.fspath(checkpoint)}")
    new = []
    for name, norm in backbone.hidden_states_norms.items() if norm_feature_maps else ():
        if loaded.config.norm_feature_maps and name in loaded.hidden_states_norms:
            norm.load_state_dict(loaded.hidden_states_norms[name].state_dict())
        else:
            new.append(name)
    if new:
        logger.info(f"the norms of the maps {', '.join(new)} are new")
    return backbone.eval()


def _load_model(
    checkpoint: str, image_size: int | Pair | None, window_size: Windows | None, trained: dict[str, Any]
) -> Swinv2PreTrainedModel:
    """Loads the network of a checkpoint, with or without a head; also a saved backbone, which has no last norm."""
    stored = Path(checkpoint).expanduser() / "config.json"
    if stored.is_file() and Swinv2Backbone.__name__ in stored.read_text():
        model: Swinv2PreTrainedModel = load_model(Swinv2Backbone, checkpoint, torch.device("cpu"), torch.float32)
    else:
        model = load(checkpoint, **trained)
    if image_size is None and window_size is None:
        return model
    size: Any = model.config.image_size if image_size is None else image_size
    windows: Any = model.config.window_size if window_size is None else window_size
    try:
        if isinstance(windows, int):
            windows = model.config.fitted_windows(size, windows)
        model.set_image_size(size, windows)
    except ValueError as error:
        raise UsageError(f"these sizes are impossible: {error}") from error
    return model
