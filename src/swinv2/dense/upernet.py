"""transformers' UperNet with a loss that takes weights of the classes, and with fewer multiplications.

In: a configuration. Out: the model, under transformers' name, so its files are the same.
"""

from typing import Any

import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.models.upernet import modeling_upernet

from swinv2.dense.resized import convolve_resized, resize
from swinv2.layers.intact import is_unwatched


class UperNetHead(modeling_upernet.UperNetHead):
    """transformers' head, which answers the same: where it resizes maps, concatenates them and applies a convolution,
    this one multiplies the small maps first. With 512 channels and maps of 128 to 16 pixels, 37% of its
    multiplications are left there.

    Source:
        Xiao et al., Unified Perceptual Parsing for Scene Understanding, 2018.
    """

    def psp_forward(self, inputs: Any) -> Tensor:
        """The map of the last stage with means over its parts."""
        pooled = self.psp_modules
        is_plain = type(pooled) is modeling_upernet.UperNetPyramidPoolingModule and is_unwatched(pooled)
        if not (is_plain and _is_plain(self.bottleneck)):
            return super().psp_forward(inputs)
        return _apply(self.bottleneck, [inputs[-1], *(block(inputs[-1]) for block in pooled.blocks)])

    def forward(self, encoder_hidden_states: Any) -> Tensor:
        """See transformers."""
        if not _is_plain(self.fpn_bottleneck):
            return super().forward(encoder_hidden_states)
        laterals = [conv(each) for conv, each in zip(self.lateral_convs, encoder_hidden_states[:-1], strict=True)]
        laterals.append(self.psp_forward(encoder_hidden_states))
        for level in range(len(laterals) - 1, 0, -1):
            laterals[level - 1] = laterals[level - 1] + resize(laterals[level], laterals[level - 1].shape[2:])
        outs = [conv(each) for conv, each in zip(self.fpn_convs, laterals[:-1], strict=True)]
        return self.classifier(_apply(self.fpn_bottleneck, [*outs, laterals[-1]]))


def _is_plain(module: Any) -> bool:
    """Whether convolution, norm and activation may be applied one by one: nobody watches them together, and nobody has
    replaced the convolution, as LoRA does."""
    return (
        type(module) is modeling_upernet.UperNetConvModule
        and type(module.conv) is nn.Conv2d
        and is_unwatched(module)
        and is_unwatched(module.conv)
    )


def _apply(module: Any, maps: list[Tensor]) -> Tensor:
    """Applies a convolution, its norm and its activation to maps of several sizes."""
    return module.activation(module.batch_norm(convolve_resized(module.conv, maps)))


class UperNetForSemanticSegmentation(transformers.UperNetForSemanticSegmentation):
    """transformers' UperNet. Its loss is the same, but it can weigh the classes, and is 0 instead of NaN for images
    without a labelled pixel.

    Attributes:
        class_weights: The weight of each class (classes,) in the loss; None for equal weights. It is not saved.

    Source:
        Xiao et al., Unified Perceptual Parsing for Scene Understanding, 2018.
    """

    class_weights: Tensor | None = None

    def __init__(self, config: transformers.UperNetConfig) -> None:
        super().__init__(config)
        # The same modules, computed in another way.
        self.decode_head.__class__ = UperNetHead

    def forward(
        self,
        pixel_values: Any = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        **rest: Any,
    ) -> Any:
        """See transformers; with `labels` (B, height, width) there is a loss. For an answer alone, the auxiliary head
        computes nothing."""
        if labels is not None and self.config.num_labels == 1:
            raise ValueError("UperNet has one label; a loss needs at least two.")
        wanted = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        wanted = {name: getattr(self.config, name) if each is None else each for name, each in wanted.items()}
        seen = self.backbone.forward_with_filtered_kwargs(pixel_values, **wanted)
        size = pixel_values.shape[2:]
        logits = resize(self.decode_head(seen.feature_maps), size)
        loss = None if labels is None else self._loss_of(logits, labels)
        # Its batch norm learns from all images in training.
        if self.auxiliary_head is not None and (self.training or loss is not None):
            auxiliary = self.auxiliary_head(seen.feature_maps)
            if loss is not None and labels is not None:
                loss = loss + self.config.auxiliary_loss_weight * self._loss_of(resize(auxiliary, size), labels)
        answer: Any = SemanticSegmenterOutput(loss, logits, seen.hidden_states, seen.attentions)  # type: ignore[arg-type]
        return answer if (self.config.return_dict if return_dict is None else return_dict) else answer.to_tuple()

    def _loss_of(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The cross entropy of labelled pixels."""
        ignored = self.config.loss_ignore_index
        if not (labels != ignored).any():
            # Every parameter still gets a gradient, which several processes wait for.
            return logits.float().sum() * 0.0
        weights = None if self.class_weights is None else self.class_weights.to(logits.device, logits.dtype)
        return F.cross_entropy(logits, labels, weights, ignore_index=ignored)
