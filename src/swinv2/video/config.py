"""The configuration of a Swin Transformer V2 for videos: that for images, with a time axis.

In: the fields of a `config.json`. Out: a validated `Swinv2VideoConfig`, whose stages have windows of three lengths
(frames, height, width). Lengths of frames are in tokens after the patch embedding, which joins `tubelet_size` frames.
"""

from typing import Any, Self

from swinv2.config import Swinv2Config
from swinv2.lengths import Lengths, Windows, as_length


class Swinv2VideoConfig(Swinv2Config):
    """Configuration of a Swin Transformer V2 for videos.

    It has the fields of `Swinv2Config`. Those of the masked-image decoder and of feature maps (`encoder_stride`,
    `norm_targets`, `norm_feature_maps`) have no effect; windows have three lengths.

    Args:
        num_frames: Frames of a clip. Like `image_size`, it determines windows and shifts; the forward pass takes any
            number.
        tubelet_size: Frames of a patch.
        frame_stride: Frames of a video from one frame of a clip to the next, at which the model was trained; 0: the
            frames were spread over the whole video. It does not change the network; who reads videos uses it.
        window_size: Attention windows in tokens: one length, or (frames, height, width); or a list with one of these
            for each stage. A window is clipped, axis by axis, to its stage's map.
        pretrained_window_sizes: For each stage, the window in which its position bias was learned (one length or
            three), or 0, as a whole or on one axis, for that of `window_size`.
        mask_padding: As for images. Padding frames are always hidden.
        classifier_dropout_prob: Dropout before the classifier.

    Raises:
        ValueError: See `Swinv2Config`.

    Source:
        Liu et al., Video Swin Transformer (arXiv 2106.13230), for windows, patches and merging; Swin Transformer V2,
        section 4.3, for V2 on videos; transformers' `VideoMAEConfig` for the names `num_frames` and `tubelet_size`.

    Example:

        >>> from swinv2.video.config import Swinv2VideoConfig
        >>> config = Swinv2VideoConfig(num_frames=16, image_size=256, window_size=(8, 8, 8))
        >>> [stage.grid for stage in config.stages()]
        [(8, 64, 64), (8, 32, 32), (8, 16, 16), (8, 8, 8)]
        >>> config.stages()[0].shift
        (0, 4, 4)
    """

    model_type = "swinv2_video"
    axes = 3
    size_fields = frozenset({"num_frames", "image_size", "window_size"})

    num_frames: int = 32
    tubelet_size: int = 2
    frame_stride: int = 2
    window_size: int | list[Any] | tuple[Any, ...] = (8, 7, 7)
    classifier_dropout_prob: float = 0.0

    def resized(
        self,
        image_size: Any,
        window_size: Windows | None = None,
        stretch: bool = False,
        num_frames: int | None = None,
    ) -> Self:
        """The same network for another image size, another window or another number of frames; see `Swinv2Config`.

        Args:
            image_size: In pixels, one length or (height, width).
            window_size: In tokens, in any notation of the field; None keeps the present one.
            stretch: Stretch the learned position bias over the new window instead of extrapolating it.
            num_frames: Frames of a clip; None keeps the present number.

        Raises:
            ValueError: A size or the window is impossible.
        """
        frames = self.num_frames if num_frames is None else num_frames
        return self._with_sizes({"image_size": image_size, "num_frames": frames}, window_size, stretch)

    @property
    def input_lengths(self) -> Lengths:
        """Size of the configured clip: frames, and (height, width) in pixels."""
        return self.num_frames, *super().input_lengths

    @property
    def patch_lengths(self) -> Lengths:
        """Size of a patch: frames, and (height, width) in pixels."""
        return self.tubelet_size, *super().patch_lengths

    def _check_each(self) -> None:
        """Raises an error for a value that is always wrong."""
        for name in ("num_frames", "tubelet_size"):
            as_length(name, getattr(self, name))
        if self.frame_stride != 0:
            as_length("frame_stride", self.frame_stride)
        self._check_probability("classifier_dropout_prob")
        super()._check_each()

    def _check_together(self) -> None:
        """Raises an error if fields contradict each other."""
        if self.num_frames < self.tubelet_size:
            raise ValueError(
                f"num_frames {self.num_frames} is smaller than tubelet_size {self.tubelet_size}; a clip must have at "
                "least one patch."
            )
        super()._check_together()
