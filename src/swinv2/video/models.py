"""The network for videos, and its classifier.

In: videos (B, frames, channels, height, width), as transformers' video processors make them. Out: transformers'
outputs. The layers are those of images: they take maps with a time axis.
"""

from jaxtyping import Float
from torch import Tensor, nn

from swinv2.heads import Swinv2Classifier
from swinv2.lengths import Windows
from swinv2.model import Swinv2Model, Swinv2PreTrainedModel
from swinv2.video.config import Swinv2VideoConfig


class Swinv2VideoPreTrainedModel(Swinv2PreTrainedModel):
    """The base class of all models for videos; see `Swinv2PreTrainedModel`."""

    config_class = Swinv2VideoConfig
    config: Swinv2VideoConfig
    input_modalities = ["video"]

    def set_clip_size(
        self,
        num_frames: int,
        image_size: int | tuple[int, int] | None = None,
        window_size: Windows | None = None,
        stretch: bool = False,
    ) -> None:
        """Adapts the model to clips of another size; see `set_image_size`, which keeps the number of frames.

        Args:
            num_frames: New number of frames.
            image_size: New size of a frame in pixels, one length or (height, width); None keeps the current size.
            window_size: New window in tokens, one for all stages or one for each; None keeps the current windows.
            stretch: Stretch the learned position bias over the new window instead of extrapolating it.

        Raises:
            ValueError: A size or the window is impossible; the model is unchanged.
        """
        size = self.config.image_size if image_size is None else image_size
        self._adopt(self.config.resized(size, window_size, stretch, num_frames))

    def _check_input(self, pixel_values: Tensor | None) -> Tensor:
        """Raises an error unless the model's input is a tensor of videos with at least one frame."""
        pixel_values = self._check_pixels(pixel_values, "video", "(batch, frames, channels, height, width)")
        if pixel_values.shape[1] == 0:
            raise ValueError("pixel_values has videos without a frame; expected at least one.")
        return pixel_values


class Swinv2VideoModel(Swinv2VideoPreTrainedModel, Swinv2Model):
    """The network without a head: videos in, tokens and their mean out.

    Args:
        config: The configuration.
        add_pooling_layer: Whether to return the mean of the last tokens.
        use_mask_token: Whether the model has a token that replaces masked patches.

    `forward` is that of `Swinv2Model`, for videos (B, frames, channels, height, width) of any size. Tokens are in the
    order of frames, rows and columns; `reshaped_hidden_states` are maps (B, channels, frames, H, W).

    Example:

        >>> import torch
        >>> from swinv2 import Swinv2VideoConfig, Swinv2VideoModel
        >>> config = Swinv2VideoConfig(num_frames=4, image_size=64, embed_dim=24, depths=[1, 1], num_heads=[1, 2])
        >>> outputs = Swinv2VideoModel(config).eval()(torch.zeros(1, 5, 3, 50, 70))
        >>> tuple(outputs.last_hidden_state.shape), tuple(outputs.pooler_output.shape)
        ((1, 189, 48), (1, 48))
    """


class Swinv2ForVideoClassification(Swinv2VideoPreTrainedModel, Swinv2Classifier):
    """The network with a linear classifier on the mean of its last tokens.

    Args:
        config: The configuration; `num_labels` is the number of classes, 0 for no classifier.

    Example:

        >>> import torch
        >>> from swinv2 import Swinv2ForVideoClassification, Swinv2VideoConfig
        >>> config = Swinv2VideoConfig(
        ...     num_frames=4, image_size=64, embed_dim=24, depths=[1, 1], num_heads=[1, 2], num_labels=5
        ... )
        >>> model = Swinv2ForVideoClassification(config).eval()
        >>> tuple(model(torch.zeros(2, 4, 3, 64, 64)).logits.shape)
        (2, 5)
    """

    network_class = Swinv2VideoModel

    def __init__(self, config: Swinv2VideoConfig) -> None:
        super().__init__(config)
        self.dropout = nn.Dropout(config.classifier_dropout_prob)

    def classify(self, features: Float[Tensor, "B channels"]) -> Float[Tensor, "B labels"]:
        """The logits, from the mean of the last tokens, of which dropout leaves some out."""
        return super().classify(self.dropout(features))
