"""The models with a head: classification, masked-image modelling, and a backbone for dense prediction.

In: images (B, channels, height, width), labels or masks. Out: transformers' outputs. The classifier's base class is
that of videos, too.
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput

from swinv2.batches import run_by_size, sizes_of_mask
from swinv2.config import Swinv2Config
from swinv2.layers.patches import Embeddings
from swinv2.layers.stage import Encoder, stage_attentions, views_of
from swinv2.layers.views import Views
from swinv2.lengths import Pair, as_pair
from swinv2.model import Swinv2Model, Swinv2PreTrainedModel
from swinv2.outputs import Swinv2ImageClassifierOutput, Swinv2MaskedImageModelingOutput
from swinv2.simmim import masked_pixel_loss, normalise_targets, patch_grid_of


def classification_loss(
    logits: Float[Tensor, "B labels"], labels: Tensor, problem_type: str | None
) -> Float[Tensor, ""]:
    """The loss of a classifier, chosen as transformers chooses it.

    Args:
        logits: Scores.
        labels: Class indices (B,); 0/1 floats (B, labels) for multi-label classification; targets (B,) or (B, labels)
            for regression.
        problem_type: "single_label_classification", "multi_label_classification" or "regression". None means regression
            if there is one label; otherwise single-label for integers and multi-label for floats.

    Raises:
        ValueError: `problem_type` is another name, or the labels' shape or range does not fit.
    """
    if problem_type is None:
        is_index = labels.dtype in (torch.long, torch.int)
        problem_type = "single_label_classification" if is_index else "multi_label_classification"
        problem_type = "regression" if logits.shape[-1] == 1 else problem_type
    labels = labels.to(logits.device)
    if problem_type == "single_label_classification":
        return F.cross_entropy(logits, labels.reshape(-1).long())
    if problem_type not in ("multi_label_classification", "regression"):
        raise ValueError(
            f"problem_type is {problem_type!r}; expected 'single_label_classification', 'multi_label_classification', "
            "'regression' or None."
        )
    if labels.numel() != logits.numel():
        raise ValueError(
            f"labels has shape {tuple(labels.shape)}; {problem_type} needs one value for each of the logits, "
            f"{tuple(logits.shape)}."
        )
    targets = labels.reshape(logits.shape).to(logits.dtype)
    if problem_type == "regression":
        return F.mse_loss(logits, targets)
    return F.binary_cross_entropy_with_logits(logits, targets)


class Swinv2Classifier(Swinv2PreTrainedModel):
    """The base class of classifiers of images and of videos: a linear classifier on the mean of the last tokens.

    Args:
        config: The configuration; `num_labels` is the number of classes, 0 for no classifier.
    """

    network_class: ClassVar[type[Swinv2Model]] = Swinv2Model
    """The class of `swinv2`, the network without the classifier."""

    def __init__(self, config: Swinv2Config) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels or 0
        self.swinv2 = self.network_class(config)
        self.classifier = nn.Linear(config.hidden_size, self.num_labels) if self.num_labels else nn.Identity()
        self.post_init()

    def classify(self, features: Float[Tensor, "B channels"]) -> Float[Tensor, "B labels"]:
        """The logits, from the mean of the last tokens."""
        return self.classifier(features)

    def forward(
        self,
        pixel_values: Float[Tensor, "B *frames channels height width"] | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        interpolate_pos_encoding: bool = False,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Swinv2ImageClassifierOutput | tuple[Any, ...]:
        """Classifies images or videos.

        Args:
            pixel_values: Images, or for a model of videos (B, frames, channels, height, width), of any size.
            labels: See `classification_loss`; None for no loss.
            output_attentions, output_hidden_states, interpolate_pos_encoding, return_dict: See `Swinv2Model.forward`.

        Raises:
            ValueError: The images, videos or labels do not fit the model.
        """
        outputs = self.swinv2(
            pixel_values,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            interpolate_pos_encoding=interpolate_pos_encoding,
            return_dict=True,
        )
        if labels is not None and not self.num_labels:
            raise ValueError("labels were given, but this model has no classifier: config.num_labels is 0.")
        logits = self.classify(outputs.pooler_output)
        loss = None if labels is None else classification_loss(logits, labels, self.config.problem_type)
        output = Swinv2ImageClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            reshaped_hidden_states=outputs.reshaped_hidden_states,
        )
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()


class Swinv2ForImageClassification(Swinv2Classifier):
    """The network with a linear classifier on the mean of its last tokens.

    Args:
        config: The configuration; `num_labels` is the number of classes, 0 for no classifier.

    Example:

        >>> import torch
        >>> from swinv2 import Swinv2Config, Swinv2ForImageClassification
        >>> config = Swinv2Config(image_size=64, embed_dim=24, depths=[1, 1], num_heads=[1, 2], num_labels=5)
        >>> model = Swinv2ForImageClassification(config).eval()
        >>> tuple(model(torch.zeros(2, 3, 64, 64)).logits.shape)
        (2, 5)
    """


class PixelDecoder(nn.Sequential):
    """SimMIM's one-layer decoder: every token of the last map predicts its patch of pixels.

    Args:
        in_channels: Channels of the last map.
        num_channels: Channels of the image.
        stride: Size (height, width) in pixels of the patch that a token predicts.
    """

    def __init__(self, in_channels: int, num_channels: int, stride: Pair) -> None:
        super().__init__(nn.Conv2d(in_channels, stride[0] * stride[1] * num_channels, kernel_size=1))
        self.stride = stride

    def forward(self, feature_map: Float[Tensor, "B C H W"]) -> Float[Tensor, "B channels height width"]:
        """Reconstructs pixels from the last map: a 1 x 1 convolution, then each token becomes a square of pixels."""
        pixels = super().forward(feature_map).unflatten(1, (-1, *self.stride))
        return pixels.permute(0, 1, 4, 2, 5, 3).flatten(4, 5).flatten(2, 3)


class Swinv2ForMaskedImageModeling(Swinv2PreTrainedModel):
    """The network with SimMIM's decoder, which reconstructs the image from its unmasked patches.

    Args:
        config: The configuration. `encoder_stride` is the size in pixels that one token of the last map predicts. With
            `norm_targets`, the decoder predicts locally normalised pixels (`simmim.normalise_targets`), as the authors'
            Swin V2 models do.

    Example:

        >>> import torch
        >>> from swinv2 import Swinv2Config, Swinv2ForMaskedImageModeling
        >>> config = Swinv2Config(image_size=64, embed_dim=24, depths=[1, 1], num_heads=[1, 2], encoder_stride=8)
        >>> model = Swinv2ForMaskedImageModeling(config).eval()
        >>> images = torch.zeros(1, 3, 40, 64)
        >>> outputs = model(images, bool_masked_pos=torch.arange(160)[None] % 2 == 0)
        >>> tuple(outputs.reconstruction.shape), outputs.loss.ndim
        ((1, 3, 40, 64), 0)
    """

    def __init__(self, config: Swinv2Config) -> None:
        super().__init__(config)
        self.swinv2 = Swinv2Model(config, add_pooling_layer=False, use_mask_token=True)
        self.decoder = PixelDecoder(
            config.hidden_size, config.num_channels, as_pair("encoder_stride", config.encoder_stride)
        )
        self.post_init()

    def forward(
        self,
        pixel_values: Float[Tensor, "B channels height width"] | None = None,
        bool_masked_pos: Bool[Tensor, "B patches"] | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        interpolate_pos_encoding: bool = False,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Swinv2MaskedImageModelingOutput | tuple[Any, ...]:
        """Reconstructs images.

        Args:
            pixel_values: Images of any size, square or not.
            bool_masked_pos: True for masked patches, row by row; None for no mask and no loss.
            output_attentions, output_hidden_states, interpolate_pos_encoding, return_dict: See `Swinv2Model.forward`.
        """
        pixel_values = self._check_input(pixel_values)
        size, patch_size = (pixel_values.shape[2], pixel_values.shape[3]), as_pair("patch_size", self.config.patch_size)
        merges = self.config.num_layers - 1
        token_size = patch_size[0] << merges, patch_size[1] << merges
        fits = self.decoder.stride == token_size
        if bool_masked_pos is not None and not fits:
            raise ValueError(
                f"bool_masked_pos was given, so encoder_stride must be the size of a token of the last map, "
                f"{token_size} for patches of {patch_size[0]} x {patch_size[1]} pixels and {self.config.num_layers} "
                f"stages; it is {self.config.encoder_stride}."
            )
        outputs = self.swinv2(
            pixel_values,
            bool_masked_pos=bool_masked_pos,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            interpolate_pos_encoding=interpolate_pos_encoding,
            return_dict=True,
        )
        last_map = outputs.last_hidden_state.transpose(1, 2).unflatten(2, patch_grid_of(size, token_size))
        reconstruction = self.decoder(last_map)
        if fits:  # the last tokens may extend beyond the image
            reconstruction = reconstruction[:, :, : size[0], : size[1]]
        loss, window = None, self.config.norm_targets
        if bool_masked_pos is not None:
            targets = normalise_targets(pixel_values, window) if window else pixel_values
            loss = masked_pixel_loss(targets, reconstruction, bool_masked_pos, patch_size)
        output = Swinv2MaskedImageModelingOutput(
            loss=loss,
            reconstruction=reconstruction,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            reshaped_hidden_states=outputs.reshaped_hidden_states,
        )
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()


class Swinv2Backbone(BackboneMixin, Swinv2PreTrainedModel):
    """The network as a feature pyramid: the map of the stem, and of each stage before its merging.

    Args:
        config: The configuration; `out_features` or `out_indices` select the maps. With `norm_feature_maps`, each of
            them has a layer norm, `hidden_states_norms`.

    Example:

        >>> import torch
        >>> from swinv2 import Swinv2Backbone, Swinv2Config
        >>> config = Swinv2Config(
        ...     image_size=64, embed_dim=24, depths=[1, 1], num_heads=[1, 2], out_features=["stem", "stage2"]
        ... )
        >>> model = Swinv2Backbone(config).eval()
        >>> [tuple(m.shape) for m in model(torch.zeros(1, 3, 64, 96)).feature_maps]
        [(1, 24, 16, 24), (1, 48, 8, 12)]
    """

    def __init__(self, config: Swinv2Config) -> None:
        super().__init__(config)
        self.num_features = [config.embed_dim, *(spec.dim for spec in config.stages())]
        self.embeddings = Embeddings(config, use_mask_token=False)
        self.encoder = Encoder(config)
        if config.norm_feature_maps:
            norms = {name: nn.LayerNorm(dim) for name, dim in zip(self.out_features, self.channels, strict=True)}
            self.hidden_states_norms = nn.ModuleDict(norms)
        self.post_init()

    def forward(
        self,
        pixel_values: Float[Tensor, "B channels height width"],
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        interpolate_pos_encoding: bool = False,
        return_dict: bool | None = None,
        pixel_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> BackboneOutput | tuple[Any, ...]:
        """Extracts feature maps.

        Args:
            pixel_values: Images of any size.
            output_attentions, output_hidden_states, interpolate_pos_encoding, return_dict: See `Swinv2Model.forward`.
            pixel_mask: 1 or True (B, height, width) for the pixels of an image, 0 for those that pad it to the size of
                the batch, at its bottom and right. Each image then gives the maps that it gives alone, with zeros
                beyond them; see `batches.run_by_size`.

        Returns:
            `feature_maps` (B, channels, H, W) in the order of `out_features`; `hidden_states`, the tokens of every map
            before its merging.

        Raises:
            ValueError: The images or the mask do not fit; or attention weights or hidden states are wanted beside a
                mask, of images of several sizes.
        """
        pixel_values = self._check_input(pixel_values)
        output_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = (
            self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        )
        size: Pair = pixel_values.shape[2], pixel_values.shape[3]
        sizes = [size] if pixel_mask is None else sizes_of_mask(pixel_mask, pixel_values)
        if set(sizes) != {size}:
            if output_attentions or output_hidden_states:
                raise ValueError(
                    "attention weights and hidden states of images of several sizes do not fit into one tensor; run "
                    "the images one by one, or leave out pixel_mask."
                )
            forward: Any = self.forward
            maps = run_by_size(
                lambda images: forward(images, False, False, interpolate_pos_encoding, True).feature_maps,
                pixel_values,
                sizes,
                [self.grids(size)[name] for name in self.out_features],
            )
            padded = BackboneOutput(feature_maps=tuple(maps))  # type: ignore[arg-type]
            return padded if (self.config.return_dict if return_dict is None else return_dict) else padded.to_tuple()
        backend = self._choose_backend(pixel_values, bool(output_attentions))
        embedded = views_of(self.embeddings(pixel_values, None, interpolate_pos_encoding, backend))
        stages = self.encoder(embedded.feature_map, backend, bool(output_attentions))
        views = dict(zip(self.stage_names, [embedded, *(before for before, *_ in stages)], strict=True))
        output = BackboneOutput(
            feature_maps=tuple(self._output_map(name, views[name]) for name in self.out_features),  # type: ignore[arg-type]
            hidden_states=tuple(each.tokens for each in views.values()) if output_hidden_states else None,
            attentions=stage_attentions(stages) if output_attentions else None,
        )
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def grids(self, image_size: Pair) -> dict[str, Pair]:
        """The size (height, width) in tokens of every map of images of a size, by its name."""
        stages = self.config.map_sizes(image_size)
        return dict(zip(self.stage_names, [stages[0], *stages], strict=True))

    def _output_map(self, name: str, views: Views) -> Float[Tensor, "B C H W"]:
        """The map of a stage for callers, with its norm if it has one."""
        if not self.config.norm_feature_maps:
            return views.channels_first
        if name not in self.hidden_states_norms:
            raise ValueError(
                f"the map {name!r} has no norm: the backbone was built for {', '.join(self.hidden_states_norms)}. Give "
                "out_features when it is loaded."
            )
        return self.hidden_states_norms[name](views.feature_map).permute(0, 3, 1, 2)
