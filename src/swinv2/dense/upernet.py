"""transformers' UperNet with a loss that takes weights of the classes.

In: a configuration. Out: the model, under transformers' name, so its files are the same.
"""

from typing import Any

import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers.modeling_outputs import SemanticSegmenterOutput


class UperNetForSemanticSegmentation(transformers.UperNetForSemanticSegmentation):
    """transformers' UperNet. Its loss is the same, but it can weigh the classes, and is 0 instead of NaN for images
    without a labelled pixel.

    Attributes:
        class_weights: The weight of each class (classes,) in the loss; None for equal weights. It is not saved.

    Source:
        Xiao et al., Unified Perceptual Parsing for Scene Understanding, 2018.
    """

    class_weights: Tensor | None = None

    def forward(self, pixel_values: Any = None, *args: Any, labels: Any = None, **rest: Any) -> Any:
        """See transformers; with `labels` (B, height, width) it returns the loss and the logits."""
        if labels is None:
            return super().forward(pixel_values, *args, **rest)
        maps = self.backbone.forward_with_filtered_kwargs(pixel_values).feature_maps
        size = pixel_values.shape[2:]
        logits = self._at_size(self.decode_head(maps), size)
        loss = self._loss_of(logits, labels)
        if self.auxiliary_head is not None:
            auxiliary = self._at_size(self.auxiliary_head(maps), size)
            loss = loss + self.config.auxiliary_loss_weight * self._loss_of(auxiliary, labels)
        return SemanticSegmenterOutput(loss=loss, logits=logits)  # type: ignore[arg-type]

    def _at_size(self, logits: Tensor, size: Any) -> Tensor:
        """Logits at the size of the images."""
        return nn.functional.interpolate(logits, size, mode="bilinear", align_corners=False)

    def _loss_of(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The cross entropy of labelled pixels."""
        ignored = self.config.loss_ignore_index
        if not (labels != ignored).any():
            # Every parameter still gets a gradient, which several processes wait for.
            return logits.float().sum() * 0.0
        weights = None if self.class_weights is None else self.class_weights.to(logits.device, logits.dtype)
        return F.cross_entropy(logits, labels, weights, ignore_index=ignored)
