"""Inflation: a model for videos from a model for images.

In: an image model. Out: a video model with the same numbers, of which a still clip, whose frames are all equal, gets
the image model's answer: the kernel of a patch is repeated along its frames and divided by their number; the position
bias does not depend on the distance in time, because the first layer of its network has zeros in the new column; all
else is copied. Training changes them.

Source: Carreira and Zisserman, Quo Vadis, Action Recognition? (arXiv 1705.07750), section 2.4; Liu et al., Video Swin
Transformer (arXiv 2106.13230), section 3.3, which repeats the table of the bias along time.
"""

import torch
from torch import Tensor

from swinv2.config import Swinv2Config
from swinv2.errors import UsageError
from swinv2.heads import Swinv2ForImageClassification, Swinv2ForMaskedImageModeling
from swinv2.lengths import as_axes, plain_windows
from swinv2.model import Swinv2Model, Swinv2PreTrainedModel
from swinv2.video.config import Swinv2VideoConfig
from swinv2.video.models import Swinv2ForVideoClassification, Swinv2VideoModel, Swinv2VideoPreTrainedModel

PATCH_KERNEL = "embeddings.patch_embeddings.projection.weight"
BIAS_INPUT = "continuous_position_bias_mlp.0.weight"

NUM_FRAMES, TUBELET_SIZE, WINDOW_FRAMES = 32, 2, 8
"""Frames of a clip and of a patch, and the length of a window in time, of Video Swin Transformer."""


def inflate_config(
    config: Swinv2Config,
    num_frames: int = NUM_FRAMES,
    tubelet_size: int = TUBELET_SIZE,
    window_frames: int = WINDOW_FRAMES,
) -> Swinv2VideoConfig:
    """The configuration of a video model for the weights of an image model.

    Args:
        config: That of the image model.
        num_frames: Frames of a clip.
        tubelet_size: Frames of a patch.
        window_frames: Length of the windows in time, in tokens of `tubelet_size` frames.

    Raises:
        ValueError: A number is impossible.

    Example:

        >>> from swinv2 import Swinv2Config
        >>> from swinv2.video.inflate import inflate_config
        >>> inflate_config(Swinv2Config(window_size=7), num_frames=16).window_size
        [8, 7, 7]
    """
    fields = {name: value for name, value in config.to_dict().items() if name not in _NOT_INFLATED}
    learned = [as_axes("pretrained_window_sizes", window, 0) for window in config.pretrained_window_sizes]
    return Swinv2VideoConfig(
        **fields,
        num_frames=num_frames,
        tubelet_size=tubelet_size,
        window_size=plain_windows([(window_frames, *window) for window in config.stage_windows]),
        # 0 frames: the coordinates in time are normalised by the window itself, which has learned nothing yet.
        pretrained_window_sizes=[[0, *window] if any(window) else 0 for window in learned],
    ).checked()


_NOT_INFLATED = frozenset(
    {
        *("model_type", "architectures", "transformers_version", "window_size", "pretrained_window_sizes"),
        *("stage_names", "out_features", "out_indices", "_out_features", "_out_indices", "num_layers", "hidden_size"),
    }
)
"""Fields of an image model's configuration that are not those of the video model."""


def inflate(
    model: Swinv2PreTrainedModel,
    num_frames: int = NUM_FRAMES,
    tubelet_size: int = TUBELET_SIZE,
    window_frames: int = WINDOW_FRAMES,
) -> Swinv2VideoPreTrainedModel:
    """A video model with the weights of an image model.

    Args:
        model: A classifier, a masked-image model (whose decoder and mask token are left out) or the network alone.
        num_frames, tubelet_size, window_frames: See `inflate_config`.

    Returns:
        A `Swinv2ForVideoClassification` of a classifier, otherwise a `Swinv2VideoModel`; in evaluation mode, with the
        device and dtype of the image model.

    Raises:
        UsageError: The model is of another class.
        ValueError: A number is impossible.

    Example:

        >>> import torch
        >>> from swinv2 import Swinv2Config, Swinv2ForImageClassification
        >>> from swinv2.video.inflate import inflate
        >>> config = Swinv2Config(image_size=64, embed_dim=24, depths=[1, 1], num_heads=[1, 2], num_labels=5)
        >>> model = Swinv2ForImageClassification(config).eval()
        >>> video_model = inflate(model, num_frames=4)
        >>> image = torch.rand(1, 3, 64, 64)
        >>> with torch.no_grad():
        ...     still = video_model(image[:, None].repeat(1, 7, 1, 1, 1)).logits
        ...     torch.allclose(still, model(image).logits, atol=1e-5)
        True
    """
    network = model.swinv2 if isinstance(model, Swinv2ForMaskedImageModeling) else model
    if not isinstance(network, Swinv2ForImageClassification | Swinv2Model) or isinstance(
        network, Swinv2VideoPreTrainedModel
    ):
        raise UsageError(
            f"a {type(model).__name__} cannot be inflated; expected an image classifier, a masked-image model or a "
            "Swinv2Model."
        )
    config = inflate_config(network.config, num_frames, tubelet_size, window_frames)
    config.dtype = network.dtype
    is_classifier = isinstance(network, Swinv2ForImageClassification)
    with torch.device("meta"):
        inflated = (Swinv2ForVideoClassification if is_classifier else Swinv2VideoModel)(config)
    tensors = {
        name: inflate_tensor(name, tensor.detach(), tubelet_size)
        for name, tensor in network.state_dict().items()
        if not name.endswith("embeddings.mask_token")
    }
    inflated.load_state_dict(tensors, assign=True)
    for parameter in inflated.parameters():
        parameter.requires_grad_(True)
    return inflated.eval()


def inflate_tensor(name: str, tensor: Tensor, tubelet_size: int) -> Tensor:
    """A parameter of the video model from the parameter with the same name of an image model.

    Args:
        name: Its name.
        tensor: That of the image model.
        tubelet_size: Frames of a patch.

    Returns:
        A new tensor, which shares no memory with that of the image model.
    """
    if name.endswith(PATCH_KERNEL):
        return (tensor / tubelet_size).unsqueeze(2).repeat(1, 1, tubelet_size, 1, 1)
    if name.endswith(BIAS_INPUT):
        return torch.cat([torch.zeros_like(tensor[:, :1]), tensor], 1)
    return tensor.clone(memory_format=torch.contiguous_format)
